"""What several network families share: initialisation, modes, pooling, channel shuffling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn


def initialise(model: nn.Module, linear_std: float | None = None) -> None:
    """Draw the initial weights of all convolutions, in place.

    Weights are normal with He's variance 2 / fan_out (arXiv:1502.01852), biases zero. On the meta
    device, where nothing would be drawn, nothing is done.

    Args:
        linear_std: standard deviation of the linear weights, their biases then being zero;
            None leaves linear layers as PyTorch made them.
    """
    if all(parameter.is_meta for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def global_pool(x: Tensor) -> Tensor:
    """Mean over all positions: [B, C, H, W] to [B, C], for any H and W."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def average_pool(x: Tensor, height: int, width: int) -> Tensor:
    """``torch.nn.functional.adaptive_avg_pool2d``: [B, C, H, W] to [B, C, height, width].

    On CUDA its backward pass has no deterministic form, unless the result is one mean. That of
    plain pooling has, which does the same where all windows have one size. A map of that size
    already is returned itself.
    """
    rows, columns = x.shape[2:]
    if (rows, columns) == (height, width):
        return x
    if (height, width) == (1, 1) or rows % height or columns % width:
        return F.adaptive_avg_pool2d(x, (height, width))
    return F.avg_pool2d(x, (rows // height, columns // width))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channel groups of ``x`` [B, C, H, W], so that each next group sees all."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Inside, every module of ``network`` is in eval mode; afterwards each is as it was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
