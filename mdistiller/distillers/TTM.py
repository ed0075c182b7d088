"""Transformed Teacher Matching (Zheng and Yang, arXiv:2402.11148)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import divergence
from ._precision import at_least_single
from ._registry import distiller_dict


@at_least_single
def transformed_divergence(
    logits_student: Tensor, logits_teacher: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Divergence of the student from the teacher's power transform, and the transform's mass.

    Args:
        logits_student, logits_teacher: [B, C].
        gamma: the power of the teacher's probabilities, the inverse of a temperature. The
            student has none, and no squared temperature multiplies.

    Returns:
        KL(p_t^gamma / U, p_s) [B], and U = sum p_t^gamma [B], which grows like C^(1 - gamma).
    """
    log_power = gamma * F.log_softmax(logits_teacher, dim=1)
    log_mass = log_power.logsumexp(dim=1, keepdim=True)
    log_q = log_power - log_mass
    log_p = F.log_softmax(logits_student, dim=1)
    return divergence(log_p, log_q, per_sample=True, log_target=True), log_mass[:, 0].exp()


def ttm_loss(logits_student: Tensor, logits_teacher: Tensor, gamma: float) -> Tensor:
    """Mean of the divergences of :func:`transformed_divergence`; scalar."""
    return transformed_divergence(logits_student, logits_teacher, gamma)[0].mean()


class TransformedTeacher(Distiller):
    """What TTM and WTTM share; a subclass says which node and which loss."""

    compares_logits = True
    reads_cache = ("logits",)
    node: str
    loss: Callable[..., Tensor]

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        node = cfg[self.node]
        self.ce_loss_weight = node.CE_WEIGHT
        self.beta = node.BETA
        self.gamma = node.GAMMA

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.beta * self.loss(*pair, self.gamma),
        }
        return logits_student, losses


@distiller_dict.register("TTM")
class TTM(TransformedTeacher):
    """Cross-entropy plus BETA times :func:`ttm_loss`, with the settings of ``cfg.TTM``."""

    family, needs, year = "logits", "logits", 2024
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "BETA": Setting(45.0, not_negative, "weight of the distillation loss"),
        "GAMMA": Setting(0.1, positive, "power of the teacher's probabilities"),
    }
    node = "TTM"
    loss = staticmethod(ttm_loss)
