"""ShuffleNetV2 (arXiv:1807.11164) at width 1, for small images (1x1 stem, no pooling).

As in the residual networks, a block rectifies its input instead of its output (see
``_residual.py``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models._common import channel_shuffle, global_pool
from mdistiller.models._residual import conv1x1

_STEM, _LAST = 24, 1024
_DEPTHS, _WIDTHS = (3, 7, 3), (116, 232, 464)


def _depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def _merge(left: Tensor, right: Tensor) -> Tensor:
    """Both halves of the channels, interleaved."""
    return channel_shuffle(torch.cat([left, right], dim=1), 2)


class BasicBlock(nn.Module):
    """Half of the channels passes by, the other one through 1x1, 3x3 per channel, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passing, x = F.relu(x).chunk(2, dim=1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return _merge(passing, self.bn3(self.conv3(x)))


class DownBlock(nn.Module):
    """Halves the size of the map in two branches, each of which makes half of the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise3x3(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return _merge(left, right)


@torch.no_grad()
def _gather_bn(stage: nn.Sequential) -> nn.BatchNorm2d:
    """A batch norm with, for each channel of the stage's output, what that channel went through.

    A stage's channels come from several batch norms; they are followed through its shuffles.
    The result is a copy of their present values.
    """
    down: Any
    down, *blocks = stage
    gathered = nn.BatchNorm2d(2 * down.bn2.num_features).to(down.bn2.weight)
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = _merge(getattr(down.bn2, name)[None], getattr(down.bn5, name)[None])
        for block in blocks:
            passing, _ = values.chunk(2, dim=1)
            values = _merge(passing, getattr(block.bn3, name)[None])
        getattr(gathered, name).copy_(values[0])
    return gathered


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 with 116, 232 and 464 channels.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownBlock(before, width), *(BasicBlock(width) for _ in range(depth)))
            for before, width, depth in zip((_STEM, *_WIDTHS), _WIDTHS, _DEPTHS, strict=False)
        )
        self.conv2 = conv1x1(_WIDTHS[-1], _LAST)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.linear = nn.Linear(_LAST, num_classes)

    @property
    def stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3]

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.bn1, *self.stages])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """For each stage a batch norm with the present parameters of its output channels."""
        return [_gather_bn(stage) for stage in self.stages]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return [_STEM, *_WIDTHS]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps of the stem and the stages, ``preact_feats`` the same
        before the last block's ReLU (the stem's after it), ``pooled_feat`` [B, 1024] the
        classifier's input.
        """
        feats = [F.relu(self.bn1(self.conv1(x)))]
        preact_feats = [feats[0]]
        for stage in self.stages:
            preact_feats.append(stage(preact_feats[-1]))
            feats.append(F.relu(preact_feats[-1]))
        pooled = global_pool(F.relu(self.bn2(self.conv2(feats[-1]))))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.linear(pooled), features


def ShuffleV2(num_classes: int = 100) -> ShuffleNetV2:
    return ShuffleNetV2(num_classes)
