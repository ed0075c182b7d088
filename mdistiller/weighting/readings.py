"""The quadratic programs: weights on the simplex from the cosines of three gradients.

Every function returns t in [0, 1], the weight of the supervised loss; the distillation loss
has 1 - t. c_ce and c_kd are the cosines of the two gradients to the reference gradient G,
c_12 is the cosine between the two (scalars, float64). docs/method.md derives the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

# Below this the two unit gradients count as one: rounding decides their difference.
_PARALLEL = 1e-12


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """Quotient, or ``otherwise`` where the denominator is 0; no branch, so no host read."""
    zero = denominator == 0
    quotient = numerator / denominator.masked_fill(zero, 1.0)
    return quotient.masked_fill(zero, otherwise)


def inverse_above(x: Tensor, limit: float) -> Tensor:
    """1 / x where x > limit >= 0, else 0.

    Two calls of the library fewer than with a mask; the solver's time is their number.
    """
    above = x.clamp_min(limit)
    return hardshrink(x, limit) / (above * above)


def orthogonal(c_ce: Tensor, c_kd: Tensor, c_12: Tensor, ridge: float) -> Tensor:
    """argmin of (w_ce c_ce + w_kd c_kd)^2 + ridge |w - (1/2, 1/2)|^2 (Eq. 5-6)."""
    d = c_ce - c_kd
    return _ratio(ridge - d * c_kd, d * d + 2 * ridge, otherwise=0.5).clamp(0.0, 1.0)


def align(c_ce: Tensor, c_kd: Tensor, c_12: Tensor, ridge: float) -> Tensor:
    """argmin of the distance of w_ce u_ce + w_kd u_kd to the unit reference, u unit gradients."""
    inverse_gap = inverse_above(1 - c_12, _PARALLEL)
    return (0.5 + (c_ce - c_kd) * inverse_gap * 0.5).clamp(0.0, 1.0)


def cone(c_ce: Tensor, c_kd: Tensor, c_12: Tensor, ridge: float) -> Tensor:
    """argmax of the cosine between w_ce u_ce + w_kd u_kd and the reference."""
    p = c_ce - c_12 * c_kd
    q = c_kd - c_12 * c_ce
    inside = (p > 0) & (q > 0)
    vertex = torch.where(c_ce >= c_kd, torch.ones_like(p), torch.zeros_like(p))
    # Parallel gradients, or a reference orthogonal to both: every direction is as good.
    same = (1 - c_12 <= _PARALLEL) | ((c_ce == 0) & (c_kd == 0))
    vertex = torch.where(same, torch.full_like(p, 0.5), vertex)
    share = _ratio(p, p + q, otherwise=0.5)
    return torch.where(inside & ~same, share.clamp(0.0, 1.0), vertex)


def printed(c_ce: Tensor, c_kd: Tensor, c_12: Tensor, ridge: float) -> Tensor:
    """1/2: Eq. 8 cancels whatever weights the quadratic program gave it."""
    return torch.full_like(c_12, 0.5)


def regression(c_ce: Tensor, c_kd: Tensor, c_12: Tensor, ridge: float) -> Tensor:
    """argmin over x, y >= 0 of |x u_ce + y u_kd - reference|^2, as t = x / (x + y).

    Meant for the cosines of an averaged Gramian, where c_ij = E[g_i . g_j] / (s_i s_j) and
    s_i^2 = E|g_i|^2: non-negative least squares, and the direction of its solution is that of
    the cone's largest cosine. Where no loss predicts the reference, x = y = 0 is the solution
    and has no direction: 1/2.
    """
    p = c_ce - c_12 * c_kd
    q = c_kd - c_12 * c_ce
    useless = torch.stack([p, q, c_ce, c_kd]).amax(0) <= 0
    return cone(c_ce, c_kd, c_12, ridge).masked_fill(useless, 0.5)


READINGS = {
    "align": align,
    "printed": printed,
    "orthogonal": orthogonal,
    "cone": cone,
    "regression": regression,
}
