"""Residual networks with three stages for 32x32 images (arXiv:1512.03385, section 4.2).

``resnetDx4`` has four times the channels in its stages and twice in its stem. The stem is a
3x3 convolution without pooling.
"""

from __future__ import annotations

from torch import nn

from mdistiller.models._residual import BasicBlock, ResidualNetwork, conv3x3


class ResNet(ResidualNetwork):
    """A CIFAR residual network of basic blocks.

    Args:
        depth: number of weighted layers, 6 n + 2.
        num_filters: channels of the stem and of the three stages.
        num_classes: number of logits.
    """

    def __init__(
        self,
        depth: int,
        num_filters: tuple[int, int, int, int] = (16, 16, 32, 64),
        num_classes: int = 100,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n > 0, got {depth}")
        stem = conv3x3(3, num_filters[0])
        depths = [(depth - 2) // 6] * 3
        super().__init__(BasicBlock, stem, depths, num_filters[1:], num_classes)
        self.relu = nn.ReLU()
        self.stage_channels = list(num_filters)

    def get_feat_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.conv1, self.bn1, self.relu, *self.stages])

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return list(self.stage_channels)


def resnet8(num_classes: int = 100) -> ResNet:
    return ResNet(8, num_classes=num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    return ResNet(14, num_classes=num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    return ResNet(20, num_classes=num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    return ResNet(32, num_classes=num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    return ResNet(44, num_classes=num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    return ResNet(56, num_classes=num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    return ResNet(110, num_classes=num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    return ResNet(8, (32, 64, 128, 256), num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    return ResNet(32, (32, 64, 128, 256), num_classes)
