"""EA-KD: Entropy-based Adaptive Knowledge Distillation (Su et al., arXiv:2311.13621)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-10


def _entropy(logits: Tensor, temperature: float, clamp: bool) -> Tensor:
    p = F.softmax(logits / temperature, dim=1)
    log_p = (p.clamp(min=_EPS) if clamp else p + _EPS).log()
    return -(p * log_p).sum(dim=1)


@torch.no_grad()
def entropy_weights(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    bound: float = 100.0,
    clamp: bool = False,
) -> Tensor:
    """Weights H_t / 2 (1 + H_s / bound) of the samples, from their entropies, in nats.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens the predictions whose entropies are taken.
        bound: what the student's entropy is divided by. The authors' KD and DKD files use the
            number 100 for CIFAR-100, which leaves the student at most 4.6 % of a weight; their
            paper speaks of the entropy's upper bound, log C.
        clamp: keep 1e-10 from below under the logarithm (the authors' DKD file) instead of
            adding it (their KD file).

    Returns:
        [B], without a gradient, and not normalised: the mean is not 1.
    """
    h_s, h_t = (_entropy(z, temperature, clamp) for z in (logits_student, logits_teacher))
    return h_t / 2 * (1 + h_s / bound)
