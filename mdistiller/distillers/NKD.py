"""From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., arXiv:2303.13005)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import split_target
from ._precision import at_least_single
from ._registry import distiller_dict


@at_least_single
def nkd_terms(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropies with the teacher: on the true class, and among the other classes.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: softens the second part only; its square multiplies it.

    Returns:
        Two scalars, means over the batch. They are cross-entropies:
        not zero for equal logits.
    """
    log_p = F.log_softmax(logits_student, dim=1).gather(1, target[:, None])
    weight = F.softmax(logits_teacher, dim=1).gather(1, target[:, None])
    _, rest_s = split_target(logits_student / temperature, target)
    _, rest_t = split_target(logits_teacher / temperature, target)
    among = (rest_t.exp() * rest_s).sum(dim=1)
    return -(weight * log_p).mean(), -among.mean() * temperature**2


def nkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """The first plus ``gamma`` times the second of :func:`nkd_terms`; scalar."""
    of_target, of_others = nkd_terms(logits_student, logits_teacher, target, temperature)
    return of_target + gamma * of_others


@distiller_dict.register("NKD")
class NKD(Distiller):
    """Cross-entropy plus :func:`nkd_loss`, with the settings of ``cfg.NKD``."""

    family, needs, year = "logits", "logits", 2023
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "GAMMA": Setting(1.5, not_negative, "weight of the other classes; CIFAR-100: 3.5"),
        "TEMPERATURE": Setting(1.0, positive, "softens the other classes; CIFAR-100: 3"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.NKD.CE_WEIGHT
        self.gamma = cfg.NKD.GAMMA
        self.temperature = cfg.NKD.TEMPERATURE

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": nkd_loss(*pair, target, self.gamma, self.temperature),
        }
        return logits_student, losses
