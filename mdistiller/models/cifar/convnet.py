"""Three strided convolutions with batch norm, for small images: networks for studies and demos.

``convnet12`` costs an eightieth of resnet20's multiplications, ``convnet48`` a seventh.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models._common import average_pool, initialise

_GRID = 4


class ConvNet(nn.Module):
    """Three times 3x3 convolution with stride 2, BN, ReLU; then a linear classifier of the map.

    The classifier sees where something is, on a grid of 4x4: that is the last map of a 32x32
    image, and the mean over all positions would cost these few layers too much.

    Args:
        width: channels of the first convolution; each further one has twice as many.
        num_classes: number of logits.

    Raises:
        ValueError: ``width`` is less than 1.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d

    def __init__(self, width: int, num_classes: int = 100) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be 1 or greater, got {width}")
        self.stage_channels = [width, 2 * width, 4 * width]
        in_channels = 3
        for number, channels in enumerate(self.stage_channels, start=1):
            conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
            in_channels = channels
        self.fc = nn.Linear(_GRID**2 * in_channels, num_classes)
        initialise(self)

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norms of all convolutions but the first, which counts as the stem."""
        return [self.bn2, self.bn3]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return list(self.stage_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps of the three convolutions, ``preact_feats`` the same
        before the ReLU (the first one's after it), ``pooled_feat`` [B, 64 width] the classifier's
        input.
        """
        feats = [F.relu(self.bn1(self.conv1(x)))]
        preact_feats = [feats[0]]
        for conv, bn in ((self.conv2, self.bn2), (self.conv3, self.bn3)):
            preact_feats.append(bn(conv(feats[-1])))
            feats.append(F.relu(preact_feats[-1]))
        pooled = average_pool(feats[-1], _GRID, _GRID).flatten(1)
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.fc(pooled), features


def convnet12(num_classes: int = 100) -> ConvNet:
    return ConvNet(12, num_classes)


def convnet48(num_classes: int = 100) -> ConvNet:
    return ConvNet(48, num_classes)
