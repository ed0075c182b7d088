"""Norms and cosines that a Gramian of three gradients holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norms:
    """Norms of g_ce, g_kd and G, and their inverses [3], which are 0 for 0."""

    ce: Tensor
    kd: Tensor
    ref: Tensor
    inverse: Tensor

    @property
    def pair(self) -> Tensor:
        return torch.stack([self.ce, self.kd])

    def cosines(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_12, c_ce and c_kd of a Gramian with these norms."""
        cosines = (g * self.inverse[:, None] * self.inverse).clamp(-1.0, 1.0)
        _, c_12, c_ce, _, _, c_kd = cosines.view(9)[:6].unbind()
        return c_12, c_ce, c_kd

    @classmethod
    def of(cls, squared: Tensor) -> Norms:
        squared = squared.clamp_min(0)
        norms = squared.sqrt()
        smallest = torch.finfo(squared.dtype).tiny
        ce, kd, ref = norms.unbind()
        return cls(ce, kd, ref, norms / squared.clamp_min(smallest))

    def without_zero_gradients(self, w_ce: Tensor) -> Tensor:
        """Give all the weight to the other loss where one gradient is zero."""
        zero_ce, zero_kd = self.ce == 0, self.kd == 0
        return torch.where(zero_ce ^ zero_kd, zero_kd.to(w_ce.dtype), w_ce)
