"""Knowledge Distillation with Refined Logits (Sun et al., arXiv:2408.07703)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import divergence, split_target

# Far below any logit, and finite: what is masked out must not become NaN times zero.
_OUT = -1e30


def sample_confidence_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Pulls the student's confidence in the true class to the teacher's in its top class.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: softens both; its square multiplies.

    Returns:
        Scalar, mean KL divergence of the two-class distributions; not zero for equal
        logits where the teacher is wrong.
    """
    log_s, _ = split_target(logits_student / temperature, target)
    log_t, _ = split_target(logits_teacher / temperature, logits_teacher.argmax(dim=1))
    return divergence(log_s, log_t, log_target=True) * temperature**2


def masked_correlation_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """KL divergence among the classes that the teacher ranks strictly below the true one.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: softens both; its square multiplies.

    Returns:
        Scalar, the mean over the batch; a sample with less than two such classes
        counts 0, without a gradient.
    """
    kept = logits_teacher < logits_teacher.gather(1, target[:, None])
    log_s, log_t = (
        F.log_softmax((z / temperature).masked_fill(~kept, _OUT), dim=1)
        for z in (logits_student, logits_teacher)
    )
    parts = F.kl_div(log_s, log_t, reduction="none", log_target=True)
    # Where nothing is kept, both are uniform over what is masked out.
    return torch.where(kept, parts, 0).sum(dim=1).mean() * temperature**2
