"""ShuffleNet (arXiv:1707.01083) with three groups, for small images (1x1 stem, no pooling)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models._common import channel_shuffle, global_pool

_GROUPS = 3
_STEM = 24
_DEPTHS, _WIDTHS = (4, 8, 4), (240, 480, 960)


class Bottleneck(nn.Module):
    """Grouped 1x1, shuffle, 3x3 per channel, grouped 1x1; output before the final ReLU.

    With stride 2 the pooled input is put beside the result, else it is added to it. As in the
    residual networks the block rectifies its input instead (see ``_residual.py``).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.strided = stride == 2
        own = out_channels - in_channels if self.strided else out_channels
        mid = own // 4
        # The stem has too few channels to be split into groups.
        self.groups = 1 if in_channels == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, own, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.strided:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return out + x


class ShuffleNet(nn.Module):
    """ShuffleNet with 240, 480 and 960 channels.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                Bottleneck(before, width, 2),
                *(Bottleneck(width, width, 1) for _ in range(depth - 1)),
            )
            for before, width, depth in zip((_STEM, *_WIDTHS), _WIDTHS, _DEPTHS, strict=False)
        )
        self.linear = nn.Linear(_WIDTHS[-1], num_classes)

    @property
    def stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3]

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.bn1, *self.stages])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch norm of each stage."""
        last: list[Any] = [stage[-1] for stage in self.stages]
        return [block.bn3 for block in last]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return [_STEM, *_WIDTHS]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps of the stem and the stages, ``preact_feats`` the same
        before the ReLU (the stem's after it), ``pooled_feat`` [B, 960] the classifier's input.
        """
        feats = [F.relu(self.bn1(self.conv1(x)))]
        preact_feats = [feats[0]]
        for stage in self.stages:
            preact_feats.append(stage(preact_feats[-1]))
            feats.append(F.relu(preact_feats[-1]))
        pooled = global_pool(feats[-1])
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.linear(pooled), features


def ShuffleV1(num_classes: int = 100) -> ShuffleNet:
    return ShuffleNet(num_classes)
