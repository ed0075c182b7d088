"""DOT: A Distillation-Oriented Trainer (Zhao et al., arXiv:2307.08436).

The task loss and the distillation loss keep separate momentum buffers, the distillation loss
with the larger momentum, so that it dominates the direction of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mdistiller.config import Config
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.engine.optim import uncompiled
from mdistiller.errors import ConfigError

from .base import BaseTrainer
from .registry import trainer_dict


class DistillationOrientedTrainer(Optimizer):
    """SGD with one momentum buffer for the task and one for the distillation gradient.

    A step is: distillation gradients into ``grad``, :meth:`step_kd`, task gradients into
    ``grad``, :meth:`step`. A parameter that only one of the losses reaches uses the mean of
    both momenta; weight decay goes with the task gradient where there is one.

    Args:
        params: parameters; one group.
        lr: learning rate > 0.
        momentum: of the task buffer, in [0, 1).
        momentum_kd: of the distillation buffer, in [0, 1).
        weight_decay: L2 penalty.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        momentum_kd: float,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("momentum", momentum), ("momentum_kd", momentum_kd)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "momentum_kd": momentum_kd,
                "weight_decay": weight_decay,
            },
        )
        if len(self.param_groups) != 1:
            raise ValueError("DistillationOrientedTrainer takes one parameter group")
        self._kd_gradients: dict[nn.Parameter, Tensor] = {}

    def step_kd(self) -> None:
        """Take the gradients in ``grad`` as the distillation gradients of the coming step."""
        self._kd_gradients = {
            p: p.grad for p in self.param_groups[0]["params"] if p.grad is not None
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update with the task gradients in ``grad`` and those that :meth:`step_kd` took."""
        value = closure() if closure is not None else None
        group = self.param_groups[0]
        mixed = (group["momentum"] + group["momentum_kd"]) / 2
        for p in group["params"]:
            task, kd = p.grad, self._kd_gradients.get(p)
            if task is not None:
                task = task.add(p, alpha=group["weight_decay"])
                momentum = group["momentum"] if kd is not None else mixed
                self._apply(p, "momentum_buffer", task, momentum)
            if kd is not None:
                shared = task is not None
                # The buffer's first entry is the bare gradient, decay or not.
                if not shared and "momentum_kd_buffer" in self.state[p]:
                    kd = kd.add(p, alpha=group["weight_decay"])
                momentum = group["momentum_kd"] if shared else mixed
                self._apply(p, "momentum_kd_buffer", kd, momentum)
        self._kd_gradients = {}
        return value

    def _apply(self, p: nn.Parameter, name: str, gradient: Tensor, momentum: float) -> None:
        state = self.state[p]
        if name in state:
            state[name].mul_(momentum).add_(gradient)
        else:
            state[name] = gradient.detach().clone()
        p.add_(state[name], alpha=-self.param_groups[0]["lr"])


@trainer_dict.register("dot")
class DOTTrainer(BaseTrainer):
    """Trains with :class:`DistillationOrientedTrainer`, momenta MOMENTUM -+ SOLVER.DOT.DELTA."""

    needs_distillation_loss = True
    data_parallel = True

    @classmethod
    def check(cls, cfg: Config) -> None:
        solver = cfg.SOLVER
        if solver.TYPE != "SGD" or solver.NESTEROV:
            raise ConfigError(
                f"SOLVER.TRAINER {solver.TRAINER} has its own optimizer: "
                "set SOLVER.TYPE SGD and SOLVER.NESTEROV False"
            )
        momenta = (solver.MOMENTUM - solver.DOT.DELTA, solver.MOMENTUM + solver.DOT.DELTA)
        if not all(0 <= m < 1 for m in momenta):
            raise ConfigError(
                f"SOLVER.DOT.DELTA {solver.DOT.DELTA} does not fit SOLVER.MOMENTUM "
                f"{solver.MOMENTUM}: both momenta must be in [0, 1), not {momenta}"
            )

    optimizer: DistillationOrientedTrainer

    def init_optimizer(self, cfg: Config) -> DistillationOrientedTrainer:
        solver = cfg.SOLVER
        return uncompiled(DistillationOrientedTrainer)(
            self.distiller.get_learnable_parameters(),
            lr=solver.LR,
            momentum=solver.MOMENTUM - solver.DOT.DELTA,
            momentum_kd=solver.MOMENTUM + solver.DOT.DELTA,
            weight_decay=solver.WEIGHT_DECAY,
        )

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        task, distillation = self.distiller.split_losses(losses)
        (distillation * batch.fraction).backward(retain_graph=True)
        kd_norm = self.sum_gradients()
        self.optimizer.step_kd()
        self.optimizer.zero_grad(set_to_none=True)
        (task * batch.fraction).backward()
        gradients = {
            "gradient of the supervised loss": self.sum_gradients(),
            "gradient of the distillation loss": kd_norm,
        }
        return StepResult(logits, losses, gradients=gradients)


@trainer_dict.register("crd")
class CRDTrainer(BaseTrainer):
    """mdistiller's name for training CRD; the loop passes on its extra indices by itself."""


@trainer_dict.register("crd_dot")
class CRDDOTTrainer(DOTTrainer):
    """:class:`DOTTrainer` under mdistiller's name for CRD."""
