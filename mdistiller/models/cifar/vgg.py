"""VGG networks (arXiv:1409.1556) with batch norm and one linear layer, for small images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.models._common import global_pool, initialise

_WIDTHS = (64, 128, 256, 512, 512)


def _make_block(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` times 3x3 convolution, BN, ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for index in range(depth):
        if index:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels)]
        in_channels = channels
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with max pooling between them.

    Args:
        depths: number of convolutions of each block.
        num_classes: number of logits.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _make_block(*shape) for shape in zip((3, *_WIDTHS), _WIDTHS, depths, strict=False)
        )
        self.pool0, self.pool1, self.pool2, self.pool3 = (nn.MaxPool2d(2) for _ in range(4))
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        initialise(self, linear_std=0.01)

    @property
    def blocks(self) -> list[nn.Sequential]:
        return [self.block0, self.block1, self.block2, self.block3, self.block4]

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        pools = (self.pool0, self.pool1, self.pool2, self.pool3, self.pool4)
        pairs = zip(self.blocks, pools, strict=True)
        return nn.ModuleList([module for pair in pairs for module in pair])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last batch norm of each block but the first."""
        last: list[Any] = [block[-1] for block in self.blocks[1:]]
        return last

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return list(_WIDTHS)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps of the five blocks, ``preact_feats`` the same before
        the ReLU (the first block's after it), ``pooled_feat`` [B, 512] the classifier's input.
        """
        # The last pooling would leave 2x2 of a 32x32 image; it is for larger ones.
        pools: list[nn.Module] = [self.pool0, self.pool1, self.pool2]
        pools.append(self.pool3 if x.shape[-1] >= 64 else nn.Identity())
        feats = [F.relu(self.block0(x))]
        preact_feats = [feats[0]]
        for pool, block in zip(pools, self.blocks[1:], strict=True):
            preact_feats.append(block(pool(feats[-1])))
            feats.append(F.relu(preact_feats[-1]))
        pooled = global_pool(feats[-1])
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.classifier(pooled), features


def vgg8_bn(num_classes: int = 100) -> VGG:
    return VGG((1, 1, 1, 1, 1), num_classes)


def vgg11_bn(num_classes: int = 100) -> VGG:
    return VGG((1, 1, 2, 2, 2), num_classes)


def vgg13_bn(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 2, 2, 2), num_classes)


def vgg16_bn(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 3, 3, 3), num_classes)


def vgg19_bn(num_classes: int = 100) -> VGG:
    return VGG((2, 2, 4, 4, 4), num_classes)
