"""Wide residual networks (arXiv:1605.07146), of pre-activation blocks without dropout."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models._common import global_pool, initialise
from mdistiller.models._residual import conv1x1, conv3x3


class BasicBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, around which the input skips.

    Where the number of channels changes, the skip connection is a 1x1 convolution of the
    rectified input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = (
            None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.convShortcut is None else self.convShortcut(active))


class NetworkBlock(nn.Module):
    """One stage: ``depth`` blocks, the first of which strides and widens."""

    def __init__(self, depth: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            BasicBlock(in_channels, out_channels, stride),
            *(BasicBlock(out_channels, out_channels, 1) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """A wide residual network with three stages for 32x32 images.

    Args:
        depth: number of weighted layers, 6 n + 4.
        widen_factor: multiplies the channels 16, 32, 64 of the stages.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int = 100) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n > 0, got {depth}")
        count = (depth - 4) // 6
        stem, *widths = 16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor
        self.stage_channels = [stem, *widths]
        self.conv1 = conv3x3(3, stem)
        self.block1 = NetworkBlock(count, stem, widths[0], stride=1)
        self.block2 = NetworkBlock(count, widths[0], widths[1], stride=2)
        self.block3 = NetworkBlock(count, widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.block1, self.block2, self.block3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm that follows each stage."""
        first: list[Any] = [self.block2.layer[0], self.block3.layer[0]]
        return [*(block.bn1 for block in first), self.bn1]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return list(self.stage_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the outputs of the stem and the stages, which end without a ReLU;
        ``preact_feats`` the same after the batch norm that follows each stage (the stem's
        without), ``pooled_feat`` [B, C] the classifier's input.

        In train mode the batch norms that follow the stages take two steps of their running
        statistics, since each is applied twice: mdistiller does so, and its results rest on it.
        """
        feats = [self.conv1(x)]
        for block in (self.block1, self.block2, self.block3):
            feats.append(block(feats[-1]))
        after_stage = zip(self.get_bn_before_relu(), feats[1:], strict=True)
        preact_feats = [feats[0], *(bn(feat) for bn, feat in after_stage)]
        pooled = global_pool(F.relu(self.bn1(feats[-1])))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.fc(pooled), features


def wrn_16_1(num_classes: int = 100) -> WideResNet:
    return WideResNet(16, 1, num_classes)


def wrn_16_2(num_classes: int = 100) -> WideResNet:
    return WideResNet(16, 2, num_classes)


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    return WideResNet(40, 1, num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    return WideResNet(40, 2, num_classes)
