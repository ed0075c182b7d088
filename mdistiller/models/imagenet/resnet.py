"""Residual networks for ImageNet (arXiv:1512.03385), compatible with torchvision's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import CheckpointError
from mdistiller.models._residual import BasicBlock, Bottleneck, ResidualNetwork

_CLASSES = 1000


class ResNet(ResidualNetwork):
    """A residual network with a 7x7 stem and four stages; the bottlenecks stride at their 3x3.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: number of blocks of each stage.
        num_classes: number of logits.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = _CLASSES,
    ) -> None:
        stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        super().__init__(block, stem, layers, (64, 128, 256, 512), num_classes)

    def after_stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch norm of the stages 2, 3 and 4."""
        return super().get_bn_before_relu()[1:]

    def get_stage_channels(self) -> list[int]:
        """Channels of the four stages of a bottleneck network, whatever the blocks are.

        mdistiller answers the same for basic blocks, whose stages have a quarter of that.
        """
        return [256, 512, 1024, 2048]


def _load_torchvision(model: ResNet, weights: str, num_classes: int) -> None:
    """Load torchvision's ``weights`` into ``model``, downloading them if they are not cached."""
    if num_classes != _CLASSES:
        raise CheckpointError(
            f"{weights} are of {_CLASSES} classes, the data set has {num_classes}; train a teacher "
            "on it (DISTILLER.TYPE NONE) and set DISTILLER.TEACHER_CKPT to its student_latest"
        )
    from torchvision.models import get_weight  # only here: its import takes a second

    try:
        state = get_weight(weights).get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"cannot download {weights} ({reason}); connect to the network, or set "
            "DISTILLER.TEACHER_CKPT to a local file"
        ) from error
    model.load_state_dict(state)


def _build(
    block: type[BasicBlock] | type[Bottleneck],
    layers: Sequence[int],
    num_classes: int,
    weights: str | None,
) -> ResNet:
    model = ResNet(block, layers, num_classes)
    if weights is not None:
        _load_torchvision(model, weights, num_classes)
    return model


def resnet18(pretrained: bool = False, num_classes: int = _CLASSES) -> ResNet:
    weights = "ResNet18_Weights.IMAGENET1K_V1" if pretrained else None
    return _build(BasicBlock, (2, 2, 2, 2), num_classes, weights)


def resnet34(pretrained: bool = False, num_classes: int = _CLASSES) -> ResNet:
    weights = "ResNet34_Weights.IMAGENET1K_V1" if pretrained else None
    return _build(BasicBlock, (3, 4, 6, 3), num_classes, weights)


def resnet50(pretrained: bool = False, num_classes: int = _CLASSES) -> ResNet:
    weights = "ResNet50_Weights.IMAGENET1K_V1" if pretrained else None
    return _build(Bottleneck, (3, 4, 6, 3), num_classes, weights)


def resnet101(pretrained: bool = False, num_classes: int = _CLASSES) -> ResNet:
    weights = "ResNet101_Weights.IMAGENET1K_V1" if pretrained else None
    return _build(Bottleneck, (3, 4, 23, 3), num_classes, weights)
