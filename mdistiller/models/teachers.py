"""The published teachers."""

from __future__ import annotations

# Top-1 accuracy on CIFAR-100 in per cent of the teachers that mdistiller publishes.
PUBLISHED_TOP1: dict[str, float] = {
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "ResNet50": 79.34,
    "wrn_40_2": 75.61,
    "vgg13": 74.64,
}
