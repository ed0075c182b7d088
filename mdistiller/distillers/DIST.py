"""Knowledge Distillation from A Stronger Teacher (Huang et al., arXiv:2205.10536)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._precision import at_least_single
from ._registry import distiller_dict

_EPS = 1e-8


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along ``dim``; 0 where a side does not vary."""
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    # The small number is added to the product of the norms, as in the authors' code: equal
    # inputs with little variation correlate to a little less than 1. A norm's slope at zero is
    # zero in PyTorch, so a batch of one has a finite gradient.
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + _EPS)


@at_least_single
def dist_terms(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """How far the predictions are from correlating, between classes and within a class.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens both; its square multiplies both terms.

    Returns:
        Two scalars in [0, 2 temperature^2]: ``inter``, one minus the correlation over the
        classes, mean over the samples, and ``intra``, one minus the correlation over
        the samples, mean over the classes. ``intra`` depends on the batch size; for a
        batch of one it is constant.
    """
    p_s = F.softmax(logits_student / temperature, dim=1)
    p_t = F.softmax(logits_teacher / temperature, dim=1)
    inter, intra = (1 - _correlation(p_s, p_t, dim).mean() for dim in (1, 0))
    return inter * temperature**2, intra * temperature**2


def dist_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    """``beta`` times the first plus ``gamma`` times the second of :func:`dist_terms`; scalar."""
    inter, intra = dist_terms(logits_student, logits_teacher, temperature)
    return beta * inter + gamma * intra


@distiller_dict.register("DIST")
class DIST(Distiller):
    """Cross-entropy plus :func:`dist_loss`, with the settings of ``cfg.DIST``."""

    family, needs, year = "logits", "logits", 2022
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "KD_WEIGHT": Setting(2.0, not_negative, "weight of the distillation loss"),
        "BETA": Setting(1.0, not_negative, "weight of the correlation between classes"),
        "GAMMA": Setting(1.0, not_negative, "weight of the correlation within a class"),
        "TEMPERATURE": Setting(4.0, positive, "softens both predictions; ImageNet: 1"),
    }
    compares_logits = True
    reads_cache = ("logits",)
    relates_images = True

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.DIST.CE_WEIGHT
        self.kd_loss_weight = cfg.DIST.KD_WEIGHT
        self.options = (cfg.DIST.BETA, cfg.DIST.GAMMA, cfg.DIST.TEMPERATURE)

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * dist_loss(*pair, *self.options),
        }
        return logits_student, losses
