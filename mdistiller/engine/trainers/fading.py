"""Weights of the distillation loss that others use, adapted to any method: fade and gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdistiller.config import Setting, fraction, not_negative
from mdistiller.engine.batch import Batch, StepResult

from .balancing import WeightedSumTrainer


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
