"""From gradients to their Gram matrix, the only thing that the weighting needs of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mdistiller.device import solve_dtype

# Columns converted to double precision at a time: bounds the extra memory to 24 MiB.
_CHUNK = 1 << 20


def gramian(rows: Tensor) -> Tensor:
    """Inner products of gradients, accumulated in double precision.

    Single precision would overflow or vanish for gradients beyond 1e+-19 and lose half the
    digits of the cosine of nearly parallel ones.

    Args:
        rows: [n, P], one flattened gradient per row, any float dtype.

    Returns:
        [n, n], float64 (float32 on mps), on the device of ``rows``.
    """
    dtype = solve_dtype(rows.device)
    out = rows.new_zeros((rows.shape[0],) * 2, dtype=dtype)
    for chunk in rows.split(_CHUNK, dim=1):
        chunk = chunk.to(dtype)
        out += chunk @ chunk.T
    return out


def combined_norms(products: Tensor, weights: Tensor) -> Tensor:
    """Norms of weighted sums of gradients, from their Gramian alone.

    Args:
        products: [n, n], inner products of the gradients.
        weights: [m, n], a weighted sum in each row.

    Returns:
        [m], in the Gramian's dtype; sums that cancel have half its digits.
    """
    weights = weights.to(products.dtype)
    return ((weights @ products) * weights).sum(1).clamp_min(0).sqrt()


def combine(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of gradients, accumulated in double precision.

    Args:
        rows: [n, P], one flattened gradient per row.
        weights: [n].

    Returns:
        [P], in the dtype of ``rows``.
    """
    dtype = solve_dtype(rows.device)
    weights = weights.to(dtype)
    out = torch.empty_like(rows[0])
    for target, chunk in zip(out.split(_CHUNK), rows.split(_CHUNK, dim=1), strict=True):
        target.copy_(weights @ chunk.to(dtype))
    return out
