"""Networks with another classifier than they were built with.

Some methods train a student that is no entry of the registry: CAT-KD's has a classifier without
bias (:func:`without_bias`), SimKD's ends in its teacher's (:class:`ReusedClassifier`). Their
checkpoints tell by their keys what they are, see :func:`shaped_like`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import ConfigError

from ._common import average_pool, global_pool
from .foreign import Foreign, name_of


def head_name(network: nn.Module) -> str:
    """The dotted name of the classifier: the last linear layer.

    Of a network of others it is the one whose output the logits are.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(network, Foreign) and network.plan.classifier:
        return f"net.{network.plan.classifier[0]}"
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError(f"{name_of(network)} has no linear layer, hence no classifier")
    return names[-1]


def head_of(network: nn.Module) -> nn.Linear:
    """The classifier, see :func:`head_name`."""
    head = network.get_submodule(head_name(network))
    assert isinstance(head, nn.Linear)
    return head


def with_head(network: nn.Module, head: nn.Module) -> nn.Module:
    """``network`` with another classifier.

    All other layers are shared with ``network``, which stays as it is.
    """
    return _replaced(network, head_name(network).split("."), head)


def _replaced(network: nn.Module, path: list[str], module: nn.Module) -> nn.Module:
    other = copy.copy(network)
    other._modules = dict(network._modules)
    first, *rest = path
    inner = network.get_submodule(first)
    other._modules[first] = _replaced(inner, rest, module) if rest else module
    return other


def without_bias(network: nn.Module) -> nn.Module:
    """``network`` with a classifier that has the same weights but no bias."""
    old = head_of(network)
    head = nn.Linear(old.in_features, old.out_features, bias=False, device="meta")
    head.weight = old.weight
    return with_head(network, head)


def last_map(features: Mapping[str, Any]) -> Tensor:
    """The rectified map [B, C, H, W] behind the last stage, whose mean the classifier gets."""
    if "pooled_map" in features:
        return features["pooled_map"]
    if "preact_feats" in features:
        # Networks of pre-activation blocks return ``feats`` that are not rectified.
        return F.relu(features["preact_feats"][-1])
    return features["feats"][-1]


def make_projector(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """From a student's last map to a teacher's: 1x1, 3x3, 1x1, each with BN and ReLU.

    Args:
        factor: the inner convolutions have ``out_channels // factor`` channels.
    """
    inner = max(out_channels // factor, 1)

    def conv(c_in: int, c_out: int, size: int) -> list[nn.Module]:
        layer = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
        return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *conv(in_channels, inner, 1), *conv(inner, inner, 3), *conv(inner, out_channels, 1)
    )


class ReusedClassifier(nn.Module):
    """A network that ends in another one's classifier: trunk, projector, pooling, classifier.

    Args:
        trunk: a network; its own classifier is left out.
        projector: see :func:`make_projector`.
        classifier: a trained linear layer, which is copied and stays as it is.
        size: height and width of the map that the classifier is used to; a larger map is
            pooled to it before the projector.
    """

    def __init__(
        self, trunk: nn.Module, projector: nn.Module, classifier: nn.Module, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.trunk = with_head(trunk, nn.Identity())
        self.projector = projector
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.size = size
        # For checkpoints, see :func:`shaped_like`.
        self.register_buffer("map_size", torch.tensor(self.size))

    def project(self, last: Tensor) -> Tensor:
        """The teacher's kind of map from the trunk's last one."""
        height, width = (min(a, b) for a, b in zip(last.shape[2:], self.size, strict=True))
        return self.projector(average_pool(last, height, width))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits, and the trunk's features; ``projected`` is the map that is pooled."""
        _, features = self.trunk(x)
        projected = self.project(last_map(features))
        pooled = global_pool(projected)
        features = {**features, "pooled_feat": pooled, "projected": projected}
        return self.classifier(pooled), features


def shaped_like(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """``network``, with the kind of classifier that the weights ``state`` are for.

    Without a sign of another kind this is ``network`` itself.
    """
    if not any(isinstance(module, nn.Linear) for module in network.modules()):
        return network
    # As the state dict calls it, which is the bare network's.
    head = head_name(network)
    head = head.removeprefix("net.") if isinstance(network, Foreign) else head
    if "projector.0.weight" in state and "classifier.weight" in state:
        inner, in_channels = state["projector.0.weight"].shape[:2]
        classes, out_channels = state["classifier.weight"].shape
        projector = make_projector(in_channels, out_channels, out_channels // inner)
        classifier = nn.Linear(out_channels, classes, bias="classifier.bias" in state)
        height, width = state["map_size"].tolist()
        reused = ReusedClassifier(network, projector, classifier, (height, width))
        return reused.train(network.training)
    if f"{head}.weight" in state and f"{head}.bias" not in state:
        return without_bias(network)
    return network
