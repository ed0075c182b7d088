"""Distilling the Knowledge in a Neural Network (Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting, positive

from ._base import Distiller
from ._common import divergence, loss_weights
from ._precision import at_least_single
from ._registry import distiller_dict


@at_least_single
def kd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float | Tensor,
    per_sample: bool = False,
) -> Tensor:
    """KL divergence of the softened predictions, times the squared temperature.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens both distributions; the square keeps the gradient's size.
        per_sample: return [B] instead of the mean over the batch.

    Returns:
        Scalar, or [B].
    """
    log_p_student = F.log_softmax(logits_student / temperature, dim=1)
    p_teacher = F.softmax(logits_teacher / temperature, dim=1)
    return divergence(log_p_student, p_teacher, per_sample) * temperature**2


@distiller_dict.register("KD")
class KD(Distiller):
    """Cross-entropy plus :func:`kd_loss`, with the weights of ``cfg.KD``."""

    family, needs, year = "logits", "logits", 2015
    settings = {
        **loss_weights(CE_WEIGHT=0.1, KD_WEIGHT=0.9),
        "TEMPERATURE": Setting(4, positive, "softens both predictions", kind="real"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.temperature = cfg.KD.TEMPERATURE
        self.ce_loss_weight = cfg.KD.LOSS.CE_WEIGHT
        self.kd_loss_weight = cfg.KD.LOSS.KD_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        mine, theirs = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * kd_loss(mine, theirs, self.temperature),
        }
        return logits_student, losses
