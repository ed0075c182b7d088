"""Rethinking Soft Labels for Knowledge Distillation (Zhou et al., arXiv:2102.00650)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-7


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
