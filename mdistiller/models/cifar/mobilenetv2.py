"""MobileNetV2 (arXiv:1801.04381) for small images, by default with half the channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mdistiller.models._common import global_pool, initialise

# Expansion, channels at full width, number of blocks, stride of the first one.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# After these stages the map is a feature.
_FEATURE_STAGES = (1, 2, 4, 6)
_STEM, _LAST = 32, 1280


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel by 3x3, project; the output is not rectified."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.skips = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_conv_bn(in_channels, hidden, 1),
            nn.ReLU(),
            *_conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(),
            *_conv_bn(hidden, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 whose stem halves the image once and whose maps end at 2x2 for 32x32.

    Args:
        num_classes: number of logits.
        width: multiplies the channels of the stem and the stages, not those of the last layer.
    """

    def __init__(self, num_classes: int = 100, width: float = 0.5) -> None:
        super().__init__()
        channels = int(_STEM * width)
        self.conv1 = nn.Sequential(*_conv_bn(3, channels, 3, stride=2), nn.ReLU())
        self.blocks = nn.ModuleList()
        for expansion, full, count, first_stride in _STAGES:
            stage = nn.Sequential()
            for index in range(count):
                stride = 1 if index else first_stride
                stage.append(InvertedResidual(channels, int(full * width), stride, expansion))
                channels = int(full * width)
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*_conv_bn(channels, _LAST, 1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(_LAST, num_classes))
        initialise(self, linear_std=0.01)

    def get_feat_modules(self) -> nn.ModuleList:
        """The modules that make the features."""
        return nn.ModuleList([self.conv1, self.blocks])

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm that ends each feature stage (no ReLU follows there)."""
        blocks: Any = self.blocks
        return [blocks[i][-1].conv[-1] for i in _FEATURE_STAGES]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        stem: Any = self.conv1[0]
        return [stem.out_channels, *(bn.num_features for bn in self.get_bn_before_relu())]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the maps of the stem (rectified) and of four stages (linear, hence no
        ``preact_feats``), ``pooled_feat`` [B, 1280] the classifier's input.
        """
        x = self.conv1(x)
        feats = [x]
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in _FEATURE_STAGES:
                feats.append(x)
        pooled = global_pool(self.conv2(x))
        return self.classifier(pooled), {"feats": feats, "pooled_feat": pooled}


def mobile_half(num_classes: int = 100) -> MobileNetV2:
    return MobileNetV2(num_classes, width=0.5)
