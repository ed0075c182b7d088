"""Rethinking Soft Labels for Knowledge Distillation (Zhou et al., arXiv:2102.00650)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._precision import at_least_single
from ._registry import distiller_dict

_EPS = 1e-7


@at_least_single
@torch.no_grad()
def wsld_weights(logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
    """One minus exp(-CE_s / CE_t) of each sample, without a gradient.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].

    Returns:
        [B], in [0, 1): small where the student already beats the teacher.
    """
    ce_s = F.cross_entropy(logits_student, target, reduction="none")
    ce_t = F.cross_entropy(logits_teacher, target, reduction="none")
    return -torch.expm1(-ce_s / (ce_t + _EPS))


@at_least_single
def wsld_loss(
    logits_student: Tensor, logits_teacher: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Weighted cross-entropy of the softened predictions, times the squared temperature.

    Args:
        logits_student, logits_teacher: [B, C].
        weights: [B], of :func:`wsld_weights`.
        temperature: softens both.

    Returns:
        Scalar, the mean over the batch; not zero for equal logits.
    """
    p_t = F.softmax(logits_teacher / temperature, dim=1)
    log_p_s = F.log_softmax(logits_student / temperature, dim=1)
    return -(weights * (p_t * log_p_s).sum(dim=1)).mean() * temperature**2


@distiller_dict.register("WSLD")
class WSLD(Distiller):
    """Cross-entropy plus ALPHA times :func:`wsld_loss`, with the settings of ``cfg.WSLD``.

    The samples' weights are those of the logits as they are, also where
    DISTILLER.LOGIT_STANDARDIZATION changes what is compared.
    """

    family, needs, year = "logits", "logits", 2021
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "ALPHA": Setting(2.25, not_negative, "weight of the distillation loss"),
        "TEMPERATURE": Setting(4.0, positive, "softens both predictions"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.WSLD.CE_WEIGHT
        self.alpha = cfg.WSLD.ALPHA
        self.temperature = cfg.WSLD.TEMPERATURE

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        weights = wsld_weights(logits_student, logits_teacher, target)
        pair = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.alpha * wsld_loss(*pair, weights, self.temperature),
        }
        return logits_student, losses
