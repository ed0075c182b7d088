"""What cross-batch weighting finds in one step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class CrossBatchWeights:
    """What one step's Gramian determines; all 0-dim tensors on the Gramian's device.

    Attributes:
        ce, kd: A and B, the update is ``A g_ce + B g_kd``.
        w_ce, w_kd: the quadratic program's weights of the two unit gradients, which sum to 1.
        c_ce, c_kd: cosines of the two gradients to the reference gradient G.
        c_12: cosine between the two gradients.
        norm_ce, norm_kd, norm_ref: norms of g_ce, g_kd and G.
        lam: lambda of Eq. 10 (0 where Eq. 10 is skipped).
        conflict: 1 where the two gradients conflict (c_12 < 0), else 0.
    """

    ce: Tensor
    kd: Tensor
    w_ce: Tensor
    w_kd: Tensor
    c_ce: Tensor
    c_kd: Tensor
    c_12: Tensor
    norm_ce: Tensor
    norm_kd: Tensor
    norm_ref: Tensor
    lam: Tensor
    conflict: Tensor

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Everything by name, ``ce`` and ``kd`` (the weights A and B) included."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def rounded_to(self, dtype: torch.dtype) -> CrossBatchWeights:
        """The same in ``dtype``, kept within its finite range."""
        limit = torch.finfo(dtype).max
        values = torch.stack(list(self.diagnostics.values()))
        return CrossBatchWeights(*values.clamp(-limit, limit).to(dtype).unbind())
