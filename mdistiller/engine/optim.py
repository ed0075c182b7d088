"""The optimizer that a configuration asks for, and its learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from functools import cache
from typing import TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer

from mdistiller.config import Config
from mdistiller.registry import Registry

optimizer_dict = Registry("optimizer (SOLVER.TYPE)")


_Kind = TypeVar("_Kind", bound=Optimizer)


@cache
def uncompiled(kind: type[_Kind]) -> type[_Kind]:
    """``kind`` without what lets torch.compile look into it.

    The first call of any of these methods would import the compiler, which takes nearly as long
    as importing torch and serves nothing here.
    """
    methods = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    plain["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[_Kind], type(kind.__name__, (kind,), plain))


@optimizer_dict.register("SGD")
def _sgd(parameters: Iterable[nn.Parameter], solver: Config) -> Optimizer:
    return uncompiled(torch.optim.SGD)(
        parameters,
        lr=solver.LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
        nesterov=solver.NESTEROV,
    )


@optimizer_dict.register("AdamW")
def _adamw(parameters: Iterable[nn.Parameter], solver: Config) -> Optimizer:
    # MOMENTUM is Adam's beta_1, the decay of its first moment.
    return uncompiled(torch.optim.AdamW)(
        parameters,
        lr=solver.LR,
        betas=(solver.MOMENTUM, 0.999),
        weight_decay=solver.WEIGHT_DECAY,
    )


def build_optimizer(parameters: Iterable[nn.Parameter], cfg: Config) -> Optimizer:
    """The optimizer ``cfg.SOLVER.TYPE`` over ``parameters``, in one group."""
    return optimizer_dict[cfg.SOLVER.TYPE](list(parameters), cfg.SOLVER)


def learning_rate(epoch: int, cfg: Config) -> float:
    """The learning rate of ``epoch`` (counted from 1) under ``cfg.SOLVER``.

    Linear warm-up over the first WARMUP_EPOCHS, from LR / WARMUP_EPOCHS to LR. Then SCHEDULE
    "step": times LR_DECAY_RATE after each of LR_DECAY_STAGES; or "cosine": from LR towards 0
    over the remaining epochs (arXiv:1608.03983, without restarts).
    """
    solver = cfg.SOLVER
    if epoch <= solver.WARMUP_EPOCHS:
        return solver.LR * epoch / solver.WARMUP_EPOCHS
    if solver.SCHEDULE == "cosine":
        done = epoch - 1 - solver.WARMUP_EPOCHS
        return (
            solver.LR * (1 + math.cos(math.pi * done / (solver.EPOCHS - solver.WARMUP_EPOCHS))) / 2
        )
    decays = sum(epoch > stage for stage in solver.LR_DECAY_STAGES)
    return solver.LR * solver.LR_DECAY_RATE**decays


def adjust_learning_rate(epoch: int, cfg: Config, optimizer: Optimizer) -> float:
    """Set the learning rate of ``epoch`` in every parameter group and return it.

    A group with an "lr_scale" gets that multiple of it.
    """
    lr = learning_rate(epoch, cfg)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr
    return lr
