"""Training with a weighting of the torchjd package that looks at the losses' values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.config import Config, Setting, one_of, positive
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.errors import ConfigError
from mdistiller.weighting import frozen_statistics
from mdistiller.weighting.aggregators import parse_arguments
from mdistiller.weighting.scalarizers import METHODS, Scalarization

from .pair import loss_values
from .registry import trainer_dict
from .weighted_sum import WeightedSumTrainer


@trainer_dict.register("scalarized")
class ScalarizedTrainer(WeightedSumTrainer):
    """FAMO, DWA, IMTL-L and STCH of the torchjd package (SCALARIZED.METHOD).

    The weights multiply the two losses, configured loss weights included. FAMO needs a second
    forward pass of the batch, after the step; it leaves running statistics and memories alone.
    IMTL-L's two scales are a group of the optimizer, with a learning rate that starts at
    SCALARIZED.LR and follows the schedule of SOLVER.LR, and without weight decay.

    Raises:
        ConfigError: a bad argument.
    """

    settings = {
        "METHOD": Setting("FAMO", one_of(*METHODS), "how the weights follow from the losses"),
        "PARAMS": Setting("", doc="its arguments as in Python, such as mu=0.1"),
        "LR": Setting(0.01, positive, "learning rate of what IMTL-L learns"),
    }
    diagnostics_name = "scalarized"

    @classmethod
    def check(cls, cfg: Config) -> None:
        build_scalarization(cfg)

    def init_optimizer(self, cfg: Config) -> Optimizer:
        optimizer = super().init_optimizer(cfg)
        self.scalarization = build_scalarization(cfg, self.device)
        self._epoch: int | None = None
        if self.scalarization.learnable:
            optimizer.add_param_group(
                {
                    "params": self.scalarization.learnable,
                    "lr": cfg.SCALARIZED.LR,
                    "lr_scale": cfg.SCALARIZED.LR / cfg.SOLVER.LR,
                    "weight_decay": 0.0,
                }
            )
        return optimizer

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        if self._epoch not in (None, epoch):
            self.scalarization.after_epoch()
        self._epoch = epoch
        return self.scalarization(losses)

    def step(self, batch: Batch, epoch: int) -> StepResult:
        result = super().step(batch, epoch)
        if self.scalarization.needs_losses_after:
            with torch.no_grad(), frozen_statistics(self.distiller):
                _, losses = self.distiller.forward_train(**batch.inputs(epoch))
                pair = [loss * batch.fraction for loss in self.distiller.split_losses(losses)]
                self.scalarization.after_step(loss_values(self.world, *pair))
        return result

    def extra_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "scalarization": self.scalarization.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]
        self.scalarization.load_state_dict(state["scalarization"])


def build_scalarization(cfg: Config, device: torch.device | str = "cpu") -> Scalarization:
    """The scalarization that ``cfg.SCALARIZED`` describes.

    Raises:
        ConfigError: a bad argument.
    """
    node = cfg.SCALARIZED
    try:
        return Scalarization(node.METHOD, parse_arguments(node.PARAMS), device)
    except ValueError as error:
        raise ConfigError(f"SCALARIZED.PARAMS: {error}") from None
