"""Weighted transformed teacher matching (Zheng and Yang, arXiv:2402.11148); see TTM.py."""

from __future__ import annotations

from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._registry import distiller_dict
from .TTM import TransformedTeacher, transformed_divergence


def wttm_loss(logits_student: Tensor, logits_teacher: Tensor, gamma: float) -> Tensor:
    """Mean of the divergences times their masses (:func:`~.TTM.transformed_divergence`).

    A flat teacher's samples weigh more; for small gamma the mean weight is large, so that
    weights of TTM and WTTM in the training loss are not comparable.
    """
    divergences, mass = transformed_divergence(logits_student, logits_teacher, gamma)
    return (mass * divergences).mean()


@distiller_dict.register("WTTM")
class WTTM(TransformedTeacher):
    """Cross-entropy plus BETA times :func:`wttm_loss`, with the settings of ``cfg.WTTM``."""

    family, needs, year = "logits", "logits", 2024
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "BETA": Setting(4.0, not_negative, "weight of the distillation loss"),
        "GAMMA": Setting(0.2, positive, "power of the teacher's probabilities"),
    }
    node = "WTTM"
    loss = staticmethod(wttm_loss)
