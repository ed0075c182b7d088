"""Blocks and the common frame of the post-activation residual networks (arXiv:1512.03385).

A block here rectifies its input instead of its output. The function of the whole network is
the usual one, but a stage, a plain ``nn.Sequential``, now ends with the map before the ReLU,
which distillation methods ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._common import global_pool, initialise


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (divided by ``stride``), without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class _Block(nn.Module):
    """Skip connection around :meth:`residual`; a subclass provides that and ``_build``."""

    expansion = 1
    _build: Any
    residual: Any
    last_bn: Any

    def __init__(self, in_channels: int, channels: int, stride: int, skip_name: str) -> None:
        super().__init__()
        self._build(in_channels, channels, stride)
        out_channels = channels * self.expansion
        skip = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            skip.append(conv1x1(in_channels, out_channels, stride))
            skip.append(nn.BatchNorm2d(out_channels))
        # The families call it by different names in their state dicts.
        self.skip_name = skip_name
        self.add_module(skip_name, skip)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.residual(x) + getattr(self, self.skip_name)(x)


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    def _build(self, in_channels: int, channels: int, stride: int) -> None:
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(_Block):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, the last four times as wide."""

    expansion = 4

    def _build(self, in_channels: int, channels: int, stride: int) -> None:
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, channels * self.expansion)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResidualNetwork(nn.Module):
    """Stem, stages ``layer1``, ``layer2``, ..., pooling and a linear classifier.

    Args:
        block: the kind of block.
        stem: the first convolution.
        depths: number of blocks of each stage.
        widths: ``channels`` of the blocks of each stage; every stage but the first halves
            the size of the map.
        num_classes: number of logits.
    """

    skip_name = "downsample"
    head_name = "fc"

    def __init__(
        self,
        block: type[_Block],
        stem: nn.Conv2d,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.num_stages = len(depths)
        channels = stem.out_channels
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(depth):
                stride = 2 if number > 1 and index == 0 else 1
                stage.append(block(channels, width, stride, self.skip_name))
                channels = width * block.expansion
            self.add_module(f"layer{number}", stage)
        self.add_module(self.head_name, nn.Linear(channels, num_classes))
        initialise(self)

    @property
    def stages(self) -> list[nn.Sequential]:
        return [getattr(self, f"layer{i + 1}") for i in range(self.num_stages)]

    def after_stem(self, x: Tensor) -> Tensor:
        """What happens between the stem, whose output is ``feats[0]``, and the first stage."""
        return x

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.bn1, *self.stages])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm that ends the residual branch of each stage's last block."""
        last: list[Any] = [stage[-1] for stage in self.stages]
        return [block.last_bn for block in last]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps of the stem and the stages, ``preact_feats`` the same
        before the ReLU (the stem's after it), ``pooled_feat`` [B, C] the classifier's input.
        """
        stem = F.relu(self.bn1(self.conv1(x)))
        feats, preact_feats = [stem], [stem]
        x = self.after_stem(stem)
        for stage in self.stages:
            x = stage(x)
            preact_feats.append(x)
            feats.append(F.relu(x))
        pooled = global_pool(feats[-1])
        logits = getattr(self, self.head_name)(pooled)
        return logits, {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
