"""Transformed Teacher Matching (Zheng and Yang, arXiv:2402.11148)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._common import divergence


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
