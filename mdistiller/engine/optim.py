"""The optimizer that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from mdistiller.registry import Registry

optimizer_dict = Registry("optimizer (SOLVER.TYPE)")


@optimizer_dict.register("SGD")
def _sgd(parameters: Iterable[nn.Parameter], solver) -> Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=solver.LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
        nesterov=solver.NESTEROV,
    )


@optimizer_dict.register("AdamW")
def _adamw(parameters: Iterable[nn.Parameter], solver) -> Optimizer:
    # MOMENTUM is Adam's beta_1, the decay of its first moment.
    return torch.optim.AdamW(
        parameters,
        lr=solver.LR,
        betas=(solver.MOMENTUM, 0.999),
        weight_decay=solver.WEIGHT_DECAY,
    )


def build_optimizer(parameters: Iterable[nn.Parameter], cfg) -> Optimizer:
    """The optimizer ``cfg.SOLVER.TYPE`` over ``parameters``, in one group."""
    return optimizer_dict[cfg.SOLVER.TYPE](list(parameters), cfg.SOLVER)
