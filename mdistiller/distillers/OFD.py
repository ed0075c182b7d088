"""A Comprehensive Overhaul of Feature Distillation (Heo et al., arXiv:1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdistiller.config import Config, Setting, at_least_one
from mdistiller.dataset import image_size
from mdistiller.errors import ConfigError
from mdistiller.models import name_of
from mdistiller.models._common import average_pool

from ._base import Distiller
from ._common import Constants, count, loss_weights, need_feature, probe
from ._registry import distiller_dict

# Channels that are negative more rarely than this get three deviations as margin.
_RARE = 1e-3


@torch.no_grad()
def bn_margin(bn: nn.BatchNorm2d) -> Tensor:
    """Expected value of each channel after ``bn``, given that it is negative.

    The channel is taken as a Gaussian with the layer's weight as deviation and its bias as mean.

    Returns:
        [1, C, 1, 1], float32.
    """
    mean, std = bn.bias.double(), bn.weight.double().abs()
    # A channel that does not vary has no density; its probability below is 0, a half or 1.
    z = mean / torch.where(std > 0, std, torch.finfo(std.dtype).tiny)
    negative = torch.special.ndtr(-z)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = mean - std * density / negative.clamp(min=_RARE)
    return torch.where(negative > _RARE, expected, -3 * std).float()[None, :, None, None]


def _resized(target: Tensor, like: Tensor) -> Tensor:
    """``target`` [B, C, H, W] with the height and width of ``like``: averaged, or repeated."""
    height, width = like.shape[2:]
    return average_pool(target, height, width)


def ofd_stage_loss(source: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance of two pre-activations [B, C, H, W], summed over all entries.

    The target is not taken below ``margin`` [1, C, 1, 1], and entries where it is not positive
    count only if the source exceeds it.
    """
    target = torch.maximum(target, margin)
    counts = (source > target) | (target > 0)
    return ((source - target).pow(2) * counts).sum()


class ConnectorConvBN(nn.Module):
    """One convolution with BatchNorm per stage, from student to teacher channels."""

    def __init__(self, s_channels: Sequence[int], t_channels: Sequence[int], kernel_size: int = 1):
        super().__init__()
        pairs = zip(s_channels, t_channels, strict=True)
        self.connectors = nn.ModuleList(self._connector(*pair, kernel_size) for pair in pairs)

    @staticmethod
    def _connector(s: int, t: int, kernel_size: int) -> nn.Sequential:
        conv = nn.Conv2d(s, t, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (kernel_size**2 * t)))
        return nn.Sequential(conv, nn.BatchNorm2d(t))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [connect(f) for connect, f in zip(self.connectors, maps, strict=True)]


@distiller_dict.register("OFD")
class OFD(Distiller):
    """Overhaul of feature distillation, with the settings of ``cfg.OFD``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``:
    :func:`ofd_stage_loss` per sample of the maps before the last ReLU of each stage, halved with
    each stage further from the output. Stages are paired from the deepest on; the stem and what
    only one network has are left out. The connectors are trained too.

    With OFD.TEACHER_TRAIN_MODE the teacher follows the distiller's mode, so that in training it
    normalises by batch statistics and its running ones drift (mdistiller's way).

    Raises:
        ConfigError: a network has no ``preact_feats``, or the teacher does not say which
            BatchNorm layers come before them.
    """

    family, needs, year = "features", "maps, connectors", 2019
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=0.001),
        "CONNECTOR.KERNEL_SIZE": Setting(1, at_least_one, "of the connectors' convolutions"),
        "TEACHER_TRAIN_MODE": Setting(
            True, doc="False: the teacher in eval mode, see [differences](differences.md)"
        ),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.teacher_train_mode = cfg.OFD.TEACHER_TRAIN_MODE
        self.ce_loss_weight = cfg.OFD.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.OFD.LOSS.FEAT_WEIGHT
        size = (image_size(cfg.DATASET.TYPE, cfg.DATASET.IMAGE_SIZE),) * 2
        channels_s, channels_t = (
            [f.shape[1] for f in need_feature(probe(n, size), "preact_feats", n, "OFD")][1:]
            for n in (student, teacher)
        )
        layers = self._layers_before_relu(teacher)
        self.num_stages = n = min(len(channels_s), len(channels_t), len(layers))
        self._check_layers(layers[-n:], channels_t[-n:])
        self.connectors = ConnectorConvBN(
            channels_s[-n:], channels_t[-n:], cfg.OFD.CONNECTOR.KERNEL_SIZE
        )
        self.margins = Constants(bn_margin(bn) for bn in layers[-n:])

    @staticmethod
    def _layers_before_relu(teacher: nn.Module) -> list[nn.BatchNorm2d]:
        try:
            return list(cast(Any, teacher).get_bn_before_relu())
        except (AttributeError, NotImplementedError, ConfigError):
            raise ConfigError(
                f"OFD needs a teacher with get_bn_before_relu(), which {name_of(teacher)} "
                "does not support; choose another teacher"
            ) from None

    def _check_layers(self, layers: Sequence[nn.BatchNorm2d], channels: Sequence[int]) -> None:
        widths = [bn.num_features for bn in layers]
        if not widths or widths != list(channels):
            raise ConfigError(
                f"OFD: the BatchNorm layers of the teacher {name_of(self.own_teacher)} have "
                f"{widths} channels, but its preact_feats {list(channels)}; "
                "choose another teacher"
            )

    def train(self, mode: bool = True) -> OFD:
        super().train(mode)
        if self.teacher_train_mode:
            self.own_teacher.train(mode)
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.connectors.parameters())

    def get_extra_parameters(self) -> int:
        return count(self.connectors.parameters())

    def ofd_loss(self, maps_s: Sequence[Tensor], maps_t: Sequence[Tensor]) -> Tensor:
        """Distance of the last ``num_stages`` maps [B, C, H, W] of each list; scalar."""
        n = self.num_stages
        pairs = zip(self.connectors(maps_s[-n:]), maps_t[-n:], self.margins, strict=True)
        distances = [ofd_stage_loss(f_s, _resized(f_t, f_s), margin) for f_s, f_t, margin in pairs]
        return sum(d / 2 ** (n - 1 - i) for i, d in enumerate(distances)) / len(maps_s[-1])

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * self.ofd_loss(feature_s["preact_feats"], feature_t["preact_feats"]),
        }
        return logits, losses
