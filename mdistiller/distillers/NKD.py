"""From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., arXiv:2303.13005)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._common import split_target


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
