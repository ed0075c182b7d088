"""Networks of a user's own, which return logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    """Three stages whose ReLUs are functions, and one module that is called twice."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.same = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        # Made for long trainings, as torchvision's MobileNetV3.
        self.norm3 = nn.BatchNorm2d(4 * width, momentum=0.01)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = x + F.relu(self.same(self.same(x)))
        return self.head(F.relu(self.norm3(self.conv3(x))).mean((2, 3)))


def quick(num_classes: int) -> nn.Module:
    """Learns digits in some hundred steps, of which its BatchNorm would like thousands."""
    blocks = [
        layer
        for n_in, n_out in ((3, 16), (16, 32), (32, 32))
        for layer in (
            nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(n_out, momentum=0.01),
            nn.ReLU(inplace=True),
        )
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 4 * 4, num_classes))


def small(num_classes: int) -> nn.Module:
    return Small(num_classes)


def wide(num_classes: int) -> nn.Module:
    return Small(num_classes, 16)


def own_features(num_classes: int) -> nn.Module:
    """A network that returns (logits, features) by itself."""
    from mdistiller.models import cifar_model_dict

    return cifar_model_dict["resnet8"][0](num_classes=num_classes)


def without_classes() -> nn.Module:
    return Small(10)


def no_network(num_classes: int) -> int:
    return num_classes


def only_large(num_classes: int) -> nn.Module:
    """Takes images of 64 pixels alone."""
    return nn.Sequential(nn.Conv2d(3, 4, 64), nn.Flatten(), nn.Linear(4, num_classes))
