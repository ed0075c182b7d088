"""Losses of logits at the edges: one image, two classes, ties, far and half-precision logits."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from mdistiller.distillers.DIST import dist_loss, dist_terms
from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.EAKD import entropy_weights
from mdistiller.distillers.KD import kd_loss
from mdistiller.distillers.LSKD import standardize
from mdistiller.distillers.MLKD import mlkd_losses
from mdistiller.distillers.NKD import nkd_loss, nkd_terms
from mdistiller.distillers.PLD import pld_loss
from mdistiller.distillers.RLD import masked_correlation_loss, sample_confidence_loss
from mdistiller.distillers.TTM import ttm_loss
from mdistiller.distillers.WSLD import wsld_loss, wsld_weights
from mdistiller.distillers.WTTM import wttm_loss


def eakd(s, t, y, temperature):
    return (entropy_weights(s, t) * kd_loss(s, t, temperature, per_sample=True)).mean()


def eadkd(s, t, y, temperature):
    parts = dkd_loss(s, t, y, 1.0, 8.0, temperature, per_sample=True)
    return (entropy_weights(s, t, clamp=True) * parts).mean()


def mlkd(as_coded: bool):
    return lambda s, t, y, temperature: sum(
        mlkd_losses((s, t), (s.flip(0), t), temperature, as_coded=as_coded)
    )


LOSSES = {
    "DIST": lambda s, t, y, temperature: dist_loss(s, t, temperature=temperature),
    "EA-KD": eakd,
    "EA-DKD": eadkd,
    "LSKD": lambda s, t, y, temperature: kd_loss(standardize(s), standardize(t), temperature),
    "MLKD as coded": mlkd(True),
    "MLKD as meant": mlkd(False),
    "NKD": lambda s, t, y, temperature: nkd_loss(s, t, y, 1.5, temperature),
    "PLD": pld_loss,
    "RLD scd": sample_confidence_loss,
    "RLD mcd": masked_correlation_loss,
    "TTM": lambda s, t, y, temperature: ttm_loss(s, t, 1 / temperature),
    "WTTM": lambda s, t, y, temperature: wttm_loss(s, t, 1 / temperature),
    "WSLD": lambda s, t, y, temperature: wsld_loss(s, t, wsld_weights(s, t, y), temperature),
}


def with_gradient(loss, s: Tensor, t: Tensor, y: Tensor, temperature: float):
    s = s.clone().requires_grad_()
    value = loss(s, t, y, temperature)
    (gradient,) = torch.autograd.grad(value, s)
    return value.detach(), gradient


def test_few_images_few_classes_and_far_logits_leave_everything_finite():
    generator = torch.Generator().manual_seed(0)
    for (name, loss), batch, classes, scale, temperature in product(
        LOSSES.items(), (1, 2), (2, 10), (0.0, 1.0, 300.0), (0.5, 4.0)
    ):
        s, t = (scale * torch.randn(batch, classes, generator=generator) for _ in range(2))
        y = torch.randint(classes, (batch,), generator=generator)
        value, gradient = with_gradient(loss, s, t, y, temperature)
        where = name, batch, classes, scale, temperature
        assert value.isfinite() and gradient.isfinite().all(), where
        for dtype in (torch.bfloat16, torch.float16) if (batch, classes) == (2, 10) else ():
            low = s.to(dtype), t.to(dtype)
            whole, of_whole = with_gradient(loss, *(z.float() for z in low), y, temperature)
            half, of_half = with_gradient(loss, *low, y, temperature)
            assert torch.equal(half, whole), (dtype, where)
            # A constant row's slope, 1e7, is beyond float16.
            of_half, limit = of_half.float(), torch.finfo(dtype).max
            rounding = 1e-6 + 0.02 * of_whole.abs().max().item()
            of_whole = torch.where(of_whole.abs() < limit, of_whole, of_half)
            assert torch.allclose(of_half, of_whole, atol=rounding), (dtype, where)


def test_a_batch_of_one_and_two_classes_leave_what_the_formulas_say():
    s, t = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 3.0]]).double()
    for temperature in (1.0, 4.0):
        # One sample correlates with nothing; between two classes the order is all there is.
        inter, intra = dist_terms(s, t, temperature)
        assert intra.item() == temperature**2
        assert math.isclose(inter.item(), 2 * temperature**2, rel_tol=1e-6)
        y = torch.tensor([0])
        assert nkd_terms(s, t, y, temperature)[1].item() == 0
        for label in (0, 1):
            assert masked_correlation_loss(s, t, torch.tensor([label]), temperature).item() == 0


def ranked(t: list[float], y: int) -> list[int]:
    """The true class, then the others as the teacher ranks them, of equals the first one first."""
    return [y, *sorted((c for c in range(len(t)) if c != y), key=lambda c: -t[c])]


def pld_by_hand(s: list[float], t: list[float], y: int) -> float:
    order, total = ranked(t, y), 0.0
    mass = sum(math.exp(x) for x in t)
    for k, place in enumerate(order):
        behind = math.log(sum(math.exp(s[c]) for c in order[k:]))
        total += math.exp(t[place]) / mass * (behind - s[place])
    return total


def mcd_by_hand(s: list[float], t: list[float], y: int, temperature: float) -> float:
    kept = [c for c in range(len(t)) if t[c] < t[y]]
    sums = [sum(math.exp(z[c] / temperature) for c in kept) for z in (s, t)]
    total = 0.0
    for c in kept:
        p_s, p_t = (math.exp(z[c] / temperature) / m for z, m in zip((s, t), sums, strict=True))
        total += p_t * math.log(p_t / p_s)
    return temperature**2 * total


def test_ties_in_the_teachers_ranking():
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        s = torch.randn(1, 6, generator=generator, dtype=torch.float64)
        t = torch.randint(3, (1, 6), generator=generator).double()
        y = torch.randint(6, (1,), generator=generator)
        lists = s[0].tolist(), t[0].tolist(), int(y)
        assert math.isclose(pld_loss(s, t, y).item(), pld_by_hand(*lists), rel_tol=1e-12)
        found = masked_correlation_loss(s, t, y, 2.0).item()
        assert math.isclose(found, mcd_by_hand(*lists, 2.0), rel_tol=1e-9, abs_tol=1e-15)
