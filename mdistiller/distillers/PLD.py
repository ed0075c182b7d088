"""PLD: A Choice-Theoretic List-Wise Knowledge Distillation (Bassam et al., arXiv:2506.12542)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pld_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """Weighted Plackett-Luce likelihood of a ranking: the true class, then as the teacher ranks.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: of the teacher's probabilities, which weigh the places of the ranking.

    Returns:
        Scalar, the mean over the batch of the weighted negative log-likelihood.
    """
    first = F.one_hot(target, logits_teacher.shape[1]).bool()
    order = logits_teacher.masked_fill(first, torch.inf).argsort(dim=1, descending=True)
    weights = F.softmax(logits_teacher / temperature, dim=1).gather(1, order)
    ranked = logits_student.gather(1, order)
    # Logarithm of the mass of each place and all behind it.
    remaining = ranked.flip(1).logcumsumexp(dim=1).flip(1)
    return (weights * (remaining - ranked)).sum(dim=1).mean()
