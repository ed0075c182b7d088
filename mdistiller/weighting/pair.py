"""Functions of the 2 x 2 Gramian of the supervised and the distillation gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_statistics(gramian: Tensor) -> dict[str, Tensor]:
    """Norms of the two gradients, their cosine and whether they conflict.

    Args:
        gramian: [2, 2], inner products of (g_ce, g_kd), float64 where there is any.

    Returns:
        "norm_ce", "norm_kd", "c_12" (0 if a gradient is zero) and "conflict" (1 where
        c_12 < 0, else 0), 0-dim, in the Gramian's dtype and on its device.
    """
    norms = gramian.diagonal().clamp_min(0).sqrt()
    some = norms > 0
    inverse = torch.where(some, 1 / torch.where(some, norms, torch.ones_like(norms)), norms * 0)
    # One factor after the other: the product of two norms can leave the range of the dtype.
    cosine = (gramian[0, 1] * inverse[0] * inverse[1]).clamp(-1.0, 1.0)
    return {
        "norm_ce": norms[0],
        "norm_kd": norms[1],
        "c_12": cosine,
        "conflict": (cosine < 0).to(gramian.dtype),
    }


def cosine_gate(gramian: Tensor, weighted: bool = False) -> Tensor:
    """Weights by which an auxiliary gradient is used where it agrees with the main one.

    Source: Du et al., Adapting Auxiliary Losses Using Gradient Similarity, arXiv:1812.02224.

    Args:
        gramian: [2, 2], inner products of (g_ce, g_kd).
        weighted: use the distillation gradient with the weight max(0, cosine) (their weighted
            version) instead of with 1 where the cosine is positive (the unweighted one).

    Returns:
        [2], (1, weight of the distillation gradient). A zero gradient has the cosine 0.
    """
    cosine = pair_statistics(gramian)["c_12"]
    kd = cosine.clamp_min(0) if weighted else (cosine > 0).to(cosine.dtype)
    # A cosine that is NaN stays visible instead of closing the gate.
    kd = torch.where(cosine.isnan(), cosine, kd)
    return torch.stack([torch.ones_like(kd), kd])
