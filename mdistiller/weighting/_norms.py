"""Norms and cosines that a Gramian of three gradients holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norms:
    """Norms of g_ce, g_kd and G, their inverses [3], which are 0 for 0, and their cosines."""

    ce: Tensor
    kd: Tensor
    ref: Tensor
    inverse: Tensor
    c_ce: Tensor
    c_kd: Tensor
    c_12: Tensor

    @classmethod
    def of(cls, gramian: Tensor) -> Norms:
        # Whole vectors and matrices where it can be: a step waits for every one of these calls.
        squared = gramian.diagonal().clamp_min(0)
        norms = squared.sqrt()
        inverse = norms / squared.clamp_min(torch.finfo(squared.dtype).tiny)
        cosines = (gramian * inverse[:, None] * inverse).clamp(-1.0, 1.0)
        ce, kd, ref = norms.unbind()
        _, c_12, c_ce, _, _, c_kd = cosines.view(9)[:6].unbind()
        return cls(ce, kd, ref, inverse, c_ce, c_kd, c_12)

    def without_zero_gradients(self, w_ce: Tensor) -> Tensor:
        """Give all the weight to the other loss where one gradient is zero."""
        zero_ce, zero_kd = self.ce == 0, self.kd == 0
        return torch.where(zero_ce ^ zero_kd, zero_kd.to(w_ce.dtype), w_ce)
