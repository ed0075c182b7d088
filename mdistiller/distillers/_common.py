"""What several distillers share: probing networks, comparing maps, the hint regressor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Setting
from mdistiller.errors import ConfigError
from mdistiller.models import Foreign, name_of
from mdistiller.models._common import average_pool, eval_mode
from mdistiller.models.heads import last_map


def loss_weights(**weights: float) -> dict[str, Setting]:
    """The settings LOSS.CE_WEIGHT, ... with which a method multiplies its losses.

    Args:
        **weights: defaults; CE_WEIGHT is of the cross-entropy, any other of a distillation loss.
    """
    of = {"CE_WEIGHT": "cross-entropy"}
    return {
        f"LOSS.{name}": Setting(value, doc=f"weight of the {of.get(name, 'distillation loss')}")
        for name, value in weights.items()
    }


@torch.no_grad()
def probe(network: nn.Module, size: Sequence[int]) -> dict[str, Any]:
    """The features that ``network`` returns for one black image of ``size`` (height, width).

    Only their shapes mean something. The network is left as it was: neither its modes nor its
    buffers change, and no random number is drawn.
    """
    like = next(network.parameters(), torch.empty(0))
    with eval_mode(network):
        _, features = network(torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device))
    return features


def get_feat_shapes(
    student: nn.Module, teacher: nn.Module, input_size: Sequence[int]
) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes of the entries of ``feats`` of both networks for one image of ``input_size``."""
    found = [(probe(net, input_size), net) for net in (student, teacher)]
    shapes = [
        [f.shape for f in need_feature(features, "feats", net, "the method")]
        for features, net in found
    ]
    return shapes[0], shapes[1]


def need_feature(features: Mapping[str, Any], key: str, network: nn.Module, method: str) -> Any:
    """``features[key]``, or a ConfigError that names the method and the network without it."""
    if key not in features:
        raise ConfigError(
            f"{method} needs the features {key!r}, but {name_of(network)} returns only "
            f"{', '.join(features) or 'logits'}; choose another network or another method"
        )
    return features[key]


def check_last_map(network: nn.Module, size: Sequence[int], method: str) -> Tensor:
    """The map of one black image that the classifier pools; only its shape means something.

    Raises:
        ConfigError: the network does not return that map.
    """
    features = probe(network, size)
    need_feature(features, "pooled_feat", network, method)
    wanted = features["pooled_feat"].flatten(1)
    # A network of others has found that map, or has none.
    found = wanted
    if not isinstance(network, Foreign) or "pooled_map" in features:
        found = last_map(features)
    pooled = found.mean((2, 3)) if found.dim() == 4 else found
    fits = found.dim() == 4 and pooled.shape == wanted.shape
    if not fits or not torch.allclose(pooled, wanted, rtol=1e-3, atol=1e-5):
        raise ConfigError(
            f"{method} needs the map that the classifier pools, which {name_of(network)} "
            "does not return among its features; choose another network or another method"
        )
    return found


def need_argument(kwargs: Mapping[str, Any], key: str, method: str) -> Any:
    """``kwargs[key]``, or a ConfigError that names the method and what its step lacks."""
    if kwargs.get(key) is None:
        raise ConfigError(
            f"{method} needs {key!r} at every training step; pass {key}=... to the distiller "
            "(for indices: use the data loader and trainer made for it)"
        )
    return kwargs[key]


def warmup_factor(epoch: float, warmup: float) -> float:
    """Rises in a straight line to 1 at epoch ``warmup``, counted from 1; 1 without a warm-up."""
    return min(epoch / warmup, 1.0) if warmup > 0 else 1.0


def split_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target against rest [B, 2], and within the rest [B, C - 1].

    Args:
        logits: [B, C].
        target: class labels [B].
    """
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = classes + (classes >= target[:, None])
    rest = logits.gather(1, others)
    mass = rest.logsumexp(dim=1, keepdim=True)
    target_or_rest = torch.cat([logits.gather(1, target[:, None]), mass], dim=1)
    return F.log_softmax(target_or_rest, dim=1), rest - mass


def divergence(
    log_p: Tensor, target: Tensor, per_sample: bool = False, log_target: bool = False
) -> Tensor:
    """KL divergence of ``target`` from the log-probabilities ``log_p``, both [B, C].

    Args:
        per_sample: return [B] instead of the mean over the batch, a scalar.
        log_target: ``target`` holds log-probabilities, too.
    """
    if per_sample:
        return F.kl_div(log_p, target, reduction="none", log_target=log_target).sum(dim=1)
    return F.kl_div(log_p, target, reduction="batchmean", log_target=log_target)


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together."""
    return sum(p.numel() for p in parameters)


def match_size(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W] with the smaller height and width of the two, by average pooling."""
    height, width = (min(a, b) for a, b in zip(f_s.shape[2:], f_t.shape[2:], strict=True))
    return average_pool(f_s, height, width), average_pool(f_t, height, width)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one loss term."""
    first, *others = terms
    return sum(others, first)


def as_map(pooled: Tensor) -> Tensor:
    """A pooled feature [B, C] (or [B, C, 1, 1]) as a map [B, C, 1, 1]."""
    return pooled.flatten(1)[..., None, None]


class Constants(nn.Module):
    """A list of tensors that follow their module between devices but are not saved with it."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(str(i), tensor, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, index: int) -> Tensor:
        return list(self)[index]

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()


class ConvReg(nn.Module):
    """Regressor that turns a student map into one of the teacher's shape.

    One convolution, chosen by the sizes (twice as large: stride 2; half as large: transposed;
    otherwise not smaller: a kernel that cuts the difference off), then BatchNorm and ReLU.

    Args:
        s_shape, t_shape: shapes [B, C, H, W] of the student's and the teacher's map.
        use_relu: whether the output is rectified.

    Raises:
        ConfigError: the student's map is smaller and not half as large.
    """

    def __init__(self, s_shape: Sequence[int], t_shape: Sequence[int], use_relu: bool = True):
        super().__init__()
        self.use_relu = use_relu
        (_, c_in, *size_s), (_, c_out, *size_t) = s_shape, t_shape
        if size_s == [2 * n for n in size_t]:
            self.conv: nn.Module = nn.Conv2d(c_in, c_out, kernel_size=3, stride=2, padding=1)
        elif [2 * n for n in size_s] == size_t:
            self.conv = nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1)
        elif all(s >= t for s, t in zip(size_s, size_t, strict=True)):
            height, width = (1 + s - t for s, t in zip(size_s, size_t, strict=True))
            self.conv = nn.Conv2d(c_in, c_out, kernel_size=(height, width))
        else:
            raise ConfigError(
                f"no regressor leads from student maps {tuple(s_shape[1:])} to teacher maps "
                f"{tuple(t_shape[1:])}: choose layers where the student's is not smaller, or half"
            )
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.use_relu else x
