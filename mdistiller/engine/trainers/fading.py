"""Weights that fade the teacher out over the training, or go by its confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdistiller.config import Config, Setting, fraction, not_negative, positive
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.errors import ConfigError
from mdistiller.weighting import DecaySchedule

from .registry import trainer_dict
from .weighted_sum import WeightedSumTrainer


@trainer_dict.register("distill_decay")
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


@trainer_dict.register("linear_fade")
class LinearFadeTrainer(WeightedSumTrainer):
    """Fades the teacher out in a straight line, as AICSD (arXiv:2308.04243).

    Adapted: the distillation loss's weight falls from its configured value in the first epoch to TO
    times that in the last; the supervised loss keeps its own. AICSD does so for segmentation,
    with losses of its own.
    """

    settings = {"TO": Setting(0.0, not_negative, "factor of the distillation loss at the end")}
    diagnostics_name = "linear_fade"

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        progress = (epoch - 1) / max(self.cfg.SOLVER.EPOCHS - 1, 1)
        kd = 1 + progress * (self.cfg.LINEAR_FADE.TO - 1)
        return torch.stack([torch.ones_like(losses[0]), torch.full_like(losses[1], kd)])


@trainer_dict.register("confidence_gate")
class ConfidenceGateTrainer(WeightedSumTrainer):
    """Weighs the distillation loss by the teacher's confidence, as SnT (arXiv:2411.00209).

    Adapted: the factor is the mean, over the batch, of the teacher's largest probability,
    samples below THRESHOLD counting 0; the supervised loss keeps its weight. SnT weighs several
    teachers against each other by their confidence; here there is one.
    """

    settings = {"THRESHOLD": Setting(0.0, fraction, "confidence below which a sample counts 0")}
    diagnostics_name = "confidence_gate"
    data_parallel = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._confidence: list[Tensor] = []
        self._forward_teacher = self.distiller.forward_teacher
        # For this training alone: the instance's own stands before the class's.
        watched: Any = self.distiller
        watched.forward_teacher = self._watched

    def _watched(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        logits, features = self._forward_teacher(image)
        highest = logits.softmax(dim=1).amax(dim=1)
        counts = highest >= self.cfg.CONFIDENCE_GATE.THRESHOLD
        self._confidence.append(torch.where(counts, highest, 0).mean())
        return logits, features

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        self._confidence.clear()
        self._fraction = batch.fraction
        return super().backward(batch, epoch)

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        # One pass of the teacher, or one for each view.
        confidence = (torch.stack(self._confidence).mean() * self._fraction).to(losses)
        self.world.sum_([confidence])
        return torch.stack([torch.ones_like(losses[0]), confidence])


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
