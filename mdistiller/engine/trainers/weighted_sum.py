"""The step of the trainers whose weights are known before the gradients are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mdistiller.config import Config, Setting, positive
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.weighting import uncertainty_gradient, uncertainty_weights

from .base import BaseTrainer
from .gradients import GradientRows
from .pair import loss_values
from .registry import trainer_dict


class WeightedSumTrainer(BaseTrainer):
    """Minimises a weighted sum of the two losses whose weights are known before the gradients.

    A subclass implements :meth:`weights`. Parameters outside the student get the plain gradient
    of the unweighted losses, as with all weightings. One forward and one backward pass.
    """

    needs_distillation_loss = True
    data_parallel = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # No buffer of gradients is needed.
        self._gradients = GradientRows(self.distiller, 0)

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        """Weights [2] for the losses [2], without a graph.

        Args:
            epoch: counted from 1.
            step: in the whole run, counted from 0.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement weights")

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        pair = self.distiller.split_losses(losses)
        supervised, distillation = (loss * batch.fraction for loss in pair)
        values = loss_values(self.world, supervised, distillation)
        weights = self.weights(values, epoch, batch.step)
        self._gradients.backward_weighted((supervised, distillation), weights.unbind())
        # Not those of the weights, which every process has computed from the whole batch.
        norm = self.sum_gradients((*self._gradients.theta, *self._gradients.extra))
        return StepResult(
            logits,
            losses,
            diagnostics={"ce": weights[0], "kd": weights[1]},
            gradients={"gradient": norm},
            weights=(weights[0], weights[1]),
        )


@trainer_dict.register("uncertainty")
class UncertaintyTrainer(WeightedSumTrainer):
    """Uncertainty weighting (arXiv:1705.07115): learned log variances, weights exp(-s).

    The two log variances are a group of the optimizer, with a learning rate that starts at
    UNCERTAINTY.LR and follows the schedule of SOLVER.LR, and without weight decay.
    """

    settings = {"LR": Setting(0.01, positive, "learning rate of the log variances")}
    diagnostics_name = "uncertainty"

    def init_optimizer(self, cfg: Config) -> Optimizer:
        optimizer = super().init_optimizer(cfg)
        self.log_variances = nn.Parameter(torch.zeros(2, device=self.device))
        optimizer.add_param_group(
            {
                "params": [self.log_variances],
                "lr": cfg.UNCERTAINTY.LR,
                "lr_scale": cfg.UNCERTAINTY.LR / cfg.SOLVER.LR,
                "weight_decay": 0.0,
            }
        )
        return optimizer

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        variances = self.log_variances.detach()
        self.log_variances.grad = uncertainty_gradient(variances, losses)
        return uncertainty_weights(variances)

    def extra_state(self) -> dict[str, Any]:
        return {"log_variances": self.log_variances.detach().clone()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.log_variances.copy_(state["log_variances"])
