"""MobileNet (arXiv:1704.04861) for ImageNet."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import CheckpointError
from mdistiller.models._common import global_pool

# Channels and stride of the separable convolutions.
_LAYERS: tuple[tuple[int, int], ...] = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *(((512, 1),) * 5),
    *((1024, 2), (1024, 1)),
)
_STEM = 32
# The last layer of each size of the map, counted with the stem.
_FEATURE_LAYERS = (3, 5, 11, 13)


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """MobileNet at full width.

    Args:
        pretrained: must be False; there are no published weights for this network.
        num_classes: number of logits.

    Raises:
        CheckpointError: ``pretrained`` is set.
    """

    def __init__(self, pretrained: bool = False, num_classes: int = 1000) -> None:
        super().__init__()
        if pretrained:
            raise CheckpointError(
                "there are no published weights for MobileNetV1; set DISTILLER.TEACHER_CKPT "
                "to a checkpoint of your own"
            )
        stem = nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False)
        self.model = nn.Sequential(nn.Sequential(stem, nn.BatchNorm2d(_STEM), nn.ReLU()))
        channels = _STEM
        for width, stride in _LAYERS:
            self.model.append(_separable(channels, width, stride))
            channels = width
        self.fc = nn.Linear(channels, num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm before the last ReLU of each entry of ``feats``."""
        layers: list[Any] = list(self.model)
        return [layers[i][-2] for i in _FEATURE_LAYERS]

    def get_stage_channels(self) -> list[int]:
        """Channels of the entries of ``feats``."""
        return [bn.num_features for bn in self.get_bn_before_relu()]

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, num_classes] of images [B, 3, H, W], and the features.

        ``feats`` are the rectified maps at 1/4, 1/8, 1/16 and 1/32 of the image's size (no
        stem), ``preact_feats`` the same before the ReLU, ``pooled_feat`` [B, 1024] the
        classifier's input.
        """
        feats, preact_feats = [], []
        layers: list[Any] = list(self.model)
        for index, layer in enumerate(layers):
            preact = layer[:-1](x)
            x = F.relu(preact)
            if index in _FEATURE_LAYERS:
                preact_feats.append(preact)
                feats.append(x)
        pooled = global_pool(x)
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.fc(pooled), features
