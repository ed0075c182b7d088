"""Curriculum Temperature for Knowledge Distillation (Li et al., arXiv:2211.16231)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.factor * gradient, None


def reversal(epoch: float, length: float = 10) -> float:
    """What the temperature's gradient is multiplied by: falls from 0 to -1 along a cosine.

    Args:
        epoch: counted from 1.
        length: the epoch from which on it is -1; 0 for -1 always.
    """
    progress = min(epoch / length, 1.0) if length > 0 else 1.0
    return -(1 - math.cos(math.pi * progress)) / 2


class GlobalTemperature(nn.Module):
    """One temperature for all samples, ``start + width * sigmoid(theta)``, that is learned.

    Args:
        start, width: the temperature lies between ``start`` and ``start + width``.
    """

    def __init__(self, start: float = 1.0, width: float = 20.0) -> None:
        super().__init__()
        self.start = start
        self.width = width
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, factor: float) -> Tensor:
        """The temperature, shape [1]; ``theta`` gets ``factor`` times the gradient.

        With a negative factor (:func:`reversal`) descent in everything else is ascent in theta.
        """
        theta = _ScaledGradient.apply(self.theta, factor)
        return self.start + self.width * theta.sigmoid()
