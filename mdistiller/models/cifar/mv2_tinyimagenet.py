"""MobileNetV2 (arXiv:1801.04381) at full width for 64x64 images.

Its convolutions have biases, and its 1x1 stem pads: a 64x64 image becomes a 66x66 map.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class LinearBottleneck(nn.Module):
    """Expand, filter each channel by 3x3, project; the output is not rectified."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.skips = stride == 1 and in_channels == out_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x) if self.skips else self.residual(x)


def _make_stage(
    in_channels: int, out_channels: int, depth: int, stride: int, expansion: int = 6
) -> nn.Sequential:
    return nn.Sequential(
        LinearBottleneck(in_channels, out_channels, stride, expansion),
        *(LinearBottleneck(out_channels, out_channels, 1, expansion) for _ in range(depth - 1)),
    )


class MobileNetV2(nn.Module):
    """MobileNetV2 whose classifier is a 1x1 convolution.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int = 200) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(3, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = LinearBottleneck(32, 16, stride=1, expansion=1)
        self.stage2 = _make_stage(16, 24, depth=2, stride=2)
        self.stage3 = _make_stage(24, 32, depth=3, stride=2)
        self.stage4 = _make_stage(32, 64, depth=4, stride=2)
        self.stage5 = _make_stage(64, 96, depth=3, stride=1)
        self.stage6 = _make_stage(96, 160, depth=3, stride=1)
        self.stage7 = LinearBottleneck(160, 320, stride=1, expansion=6)
        self.conv1 = nn.Sequential(nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6())
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the maps of the stem, the stages 2, 3 and 4 (linear, hence no
        ``preact_feats``) and the last layer; ``pooled_feat`` [B, 1280, 1, 1] is the
        classifier's input.
        """
        stem = self.pre(x)
        second = self.stage2(self.stage1(stem))
        third = self.stage3(second)
        fourth = self.stage4(third)
        last = self.conv1(self.stage7(self.stage6(self.stage5(fourth))))
        pooled = F.adaptive_avg_pool2d(last, 1)
        feats = [stem, second, third, fourth, last]
        return self.conv2(pooled).flatten(1), {"feats": feats, "pooled_feat": pooled}


def mobilenetv2_tinyimagenet(num_classes: int = 200) -> MobileNetV2:
    return MobileNetV2(num_classes)
