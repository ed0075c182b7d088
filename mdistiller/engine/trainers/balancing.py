"""Weightings from the literature on the same loop: GradNorm, uncertainty, cosine, decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mdistiller.config import Config, Setting, fraction, not_negative, positive
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.errors import ConfigError
from mdistiller.weighting import (
    DecaySchedule,
    GradNormWeighting,
    cosine_gate,
    uncertainty_gradient,
    uncertainty_weights,
)

from .base import BaseTrainer
from .gradients import GradientRows
from .pair import PairTrainer, loss_values


class GradNormTrainer(PairTrainer):
    """GradNorm (arXiv:1711.02257): learns weights that sum to 2 and equalise training rates.

    The gradient norms are those of all of the student's parameters.
    """

    settings = {
        "ALPHA": Setting(1.5, not_negative, "strength with which training rates are equalised"),
        "LR": Setting(0.025, positive, "learning rate of the weights"),
    }
    diagnostics_name = "gradnorm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        node = self.cfg.GRADNORM
        self.weighting = GradNormWeighting(alpha=node.ALPHA, lr=node.LR)

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, None]:
        norms = torch.stack([statistics["norm_ce"], statistics["norm_kd"]])
        return self.weighting(norms, losses), None

    def extra_state(self) -> dict[str, Any]:
        return self.weighting.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.weighting.load_state_dict(state)


class GradientCosineTrainer(PairTrainer):
    """Uses the distillation gradient only where its cosine with the CE gradient is positive.

    Both gradients are of the same batch (arXiv:1812.02224): the ablation without a second one.
    """

    settings = {
        "WEIGHTED": Setting(False, doc="multiply by the cosine instead of by 1"),
    }
    diagnostics_name = "gradient_cosine"

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, None]:
        return cosine_gate(products, self.cfg.GRADIENT_COSINE.WEIGHTED), None


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


class DistillDecayTrainer(WeightedSumTrainer):
    """Fades the teacher out after the midpoint of training (the paper, section 3.3).

    Starts with the configured loss weights and multiplies them by how far DISTILL_DECAY's
    weights have moved from where they start (docs/weightings.md).
    """

    settings = {
        "START": Setting(0.5, fraction, "where the decay starts, as a part of the training"),
        "END": Setting(0.75, fraction, "where it ends"),
        "CE_FROM": Setting(0.0, not_negative, "supervised weight before; 0: the method's own"),
        "CE_TO": Setting(1.0, not_negative, "supervised weight after"),
        "KD_FROM": Setting(0.9, positive, "distillation weight before"),
        "KD_TO": Setting(0.0, not_negative, "distillation weight after, without BETA"),
        "BETA": Setting(0.1, not_negative, "what is left of the teacher after the decay"),
    }
    diagnostics_name = "distill_decay"

    @classmethod
    def check(cls, cfg: Config) -> None:
        build_schedule(cfg)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = build_schedule(self.cfg)

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        ce, kd = self.schedule((epoch - 1) / self.cfg.SOLVER.EPOCHS)
        factors = (ce / self.schedule.ce_from, kd / self.schedule.kd_from)
        return torch.stack([torch.full_like(losses[0], factor) for factor in factors])


def build_schedule(cfg: Config) -> DecaySchedule:
    """The schedule of ``cfg.DISTILL_DECAY``, CE_FROM 0 replaced by the method's own weight.

    Raises:
        ConfigError: a value of the node is out of its range.
    """
    node = cfg.DISTILL_DECAY
    values = {name.lower(): value for name, value in node.items()}
    values["ce_from"] = node.CE_FROM or supervised_weight(cfg)
    if values["ce_from"] <= 0:
        raise ConfigError(
            "DISTILL_DECAY.CE_FROM must be set, because the configured weight of the supervised "
            "loss, from which it is taken, is 0"
        )
    try:
        return DecaySchedule(**values)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"DISTILL_DECAY.{name.upper()} {rest}") from None


def supervised_weight(cfg: Config) -> float:
    """The configured weight of the method's supervised loss; 1 where it has no such key."""
    node = cfg.get(cfg.DISTILLER.TYPE, {})
    for holder in (node.get("LOSS", {}), node):
        if "CE_WEIGHT" in holder:
            return float(holder["CE_WEIGHT"])
    return 1.0
