"""Weighted transformed teacher matching (Zheng and Yang, arXiv:2402.11148); see TTM.py."""

from __future__ import annotations

from torch import Tensor

from .TTM import transformed_divergence


def wttm_loss(logits_student: Tensor, logits_teacher: Tensor, gamma: float) -> Tensor:
    """Mean of the divergences times their masses (:func:`~.TTM.transformed_divergence`).

    A flat teacher's samples weigh more; for small gamma the mean weight is large, so that
    weights of TTM and WTTM in the training loss are not comparable.
    """
    divergences, mass = transformed_divergence(logits_student, logits_teacher, gamma)
    return (mass * divergences).mean()
