"""scikit-learn's digits as tensors, and two small networks: what the examples share."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,347 training images [N, 1, 8, 8] in 0..1 with their labels, and 450 test images."""
    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    target = torch.tensor(data.target)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return image[train], target[train], image[test], target[test]


def network(width: int) -> nn.Module:
    """Two strided convolutions; any nn.Module would do."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


@torch.no_grad()
def accuracy(net: nn.Module, image: Tensor, target: Tensor) -> float:
    """Top-1 in percent."""
    net.eval()
    hits = net(image).argmax(1) == target
    net.train()
    return 100 * hits.float().mean().item()


def train_teacher(width: int = 32, epochs: int = 8) -> nn.Module:
    """A network that is good enough to teach, in a few seconds."""
    torch.manual_seed(0)
    image, target, *_ = digits()
    net = network(width)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(target)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(image[batch]), target[batch]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)
