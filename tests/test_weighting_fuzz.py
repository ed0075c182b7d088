"""Weights of gradients of any size, format and relation stay finite and within their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdistiller.weighting import READINGS, CrossBatchWeighting, combine, gramian

# Of the profile: each is cheap, and there are many ways to be odd.
MANY = 5 * settings.default.max_examples
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = ["random", "constant", "one number", "zero", "denormal", "parallel", "opposite", "nearly"]


def row(draw, first: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
    """One gradient [size] in float64, before it is scaled and rounded to ``dtype``."""
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    base = noise if first is None else first
    if kind == "denormal":
        smallest = torch.finfo(dtype).smallest_normal
        return noise.clamp(-1, 1) * smallest / 2
    info = torch.finfo(dtype)
    low, high = (math.log10(x) for x in (info.smallest_normal, info.max / 100))
    scale = 10.0 ** draw(st.floats(max(-30, low), min(30, high)))
    shapes = {
        "random": noise,
        "constant": torch.ones_like(noise),
        "one number": torch.eye(size, dtype=torch.float64)[0],
        "zero": torch.zeros_like(noise),
        "parallel": base,
        "opposite": -base,
        "nearly": -base + 1e-5 * noise,
    }
    return shapes[kind] * scale


@st.composite
def gradients(draw) -> Tensor:
    """[3, P] of one format; every row has a scale of its own, 1e-30 to 1e30 where that exists."""
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(1, 9))
    first = row(draw, None, size, dtype)
    # Of comparable size, so that a relative of the first row keeps its relation in any format.
    like = first / first.abs().max().clamp_min(1e-300)
    rows = torch.stack([first, row(draw, like, size, dtype), row(draw, like, size, dtype)])
    largest = torch.finfo(dtype).max / 8
    return rows.clamp(-largest, largest).to(dtype)


OPTIONS = st.fixed_dictionaries(
    {
        "reading": st.sampled_from(sorted(READINGS)),
        "alpha": st.sampled_from([0.0, 0.25, 0.5, 2.0]),
        "ridge": st.sampled_from([0.0, 0.05]),
        "prefer": st.sampled_from(["ce", "kd"]),
        "ema": st.sampled_from([0.0, 0.9]),
    }
)


def check_ranges(w) -> None:
    """What holds for every input and option."""
    for name, value in w.diagnostics.items():
        assert torch.isfinite(value), name
    assert 0 <= w.w_ce <= 1
    assert abs(w.w_ce + w.w_kd - 1) < 1e-12
    assert all(-1 <= c <= 1 for c in (w.c_ce, w.c_kd, w.c_12))
    assert all(n >= 0 for n in (w.norm_ce, w.norm_kd, w.norm_ref, w.lam))
    assert w.conflict in (0, 1)


@settings(max_examples=MANY)
@given(rows=gradients(), options=OPTIONS, rescale=st.sampled_from([0, 1, 2]))
def test_stabilised_update_is_within_alpha_of_the_mean(rows, options, rescale):
    w = CrossBatchWeighting(rescale=rescale, **options)(gramian(rows))
    check_ranges(w)
    alpha = options["alpha"]
    divisor = (1, 1 + alpha**2, 1 + alpha)[rescale]
    assert w.ce >= 0.5 / divisor * (1 - 1e-12)
    assert w.kd >= 0.5 / divisor * (1 - 1e-12)
    exact = rows.double()
    g0 = ((exact[0] + exact[1]) / 2).norm()
    longest = exact[:2].norm(dim=1).max()
    a, b = w.ce * divisor - 0.5, w.kd * divisor - 0.5
    correction = (a * exact[0] + b * exact[1]).norm()
    # Unit gradients that cancel to 1e-6 leave three digits of their sum's length.
    tolerance = 5e-3 * alpha * g0 + 1e-7 * longest
    assert correction <= alpha * g0 + tolerance
    cancels = w.c_12 < -1 + 1e-11  # documented: the update is g0 then
    if not cancels and longest > 1e-150:  # the squares of shorter gradients are 0
        assert correction >= alpha * g0 - tolerance


@settings(max_examples=MANY)
@given(rows=gradients(), options=OPTIONS)
def test_update_in_the_gradients_format_is_finite_and_bounded(rows, options):
    w = CrossBatchWeighting(**options)(gramian(rows))
    update = combine(rows[:2], torch.stack([w.ce, w.kd]))
    assert update.dtype == rows.dtype
    assert torch.isfinite(update).all()
    exact, info = rows.double(), torch.finfo(rows.dtype)
    bound = (1 + options["alpha"]) * ((exact[0] + exact[1]) / 2).norm()
    rounding = 1e-2 * bound + 1e-7 * exact[:2].norm(dim=1).max() + 9 * info.smallest_normal
    assert update.double().norm() <= bound * (1 + info.eps * 9) + rounding
    if not exact[:2].any():
        assert not update.any()


@settings(max_examples=MANY)
@given(rows=gradients(), options=OPTIONS, max_ratio=st.sampled_from([0.5, 10.0, 1e6]))
def test_unstabilised_weights_are_one_and_at_most_the_ratio(rows, options, max_ratio):
    w = CrossBatchWeighting(stabilize=False, max_ratio=max_ratio, **options)(gramian(rows))
    check_ranges(w)
    preferred, other = (w.ce, w.kd) if options["prefer"] == "ce" else (w.kd, w.ce)
    # 1/2 each where the combination of opposite gradients vanishes.
    assert preferred in (1, 0.5)
    assert 0 <= other <= max(max_ratio, 1)
    if preferred == 0.5:
        assert other == 0.5


@given(steps=st.lists(gradients(), min_size=2, max_size=6), options=OPTIONS)
def test_moving_average_stays_finite_over_wild_steps(steps, options):
    weighting = CrossBatchWeighting(**{**options, "ema": 0.9})
    for rows in steps:
        check_ranges(weighting(gramian(rows)))
    state = weighting.state_dict()
    assert state["steps"] == len(steps)
    assert torch.isfinite(state["average"]).all()
    if options["reading"] != "regression":
        assert (state["average"].abs() <= 1).all()


@settings(max_examples=MANY)
@given(
    steps=st.lists(gradients(), min_size=1, max_size=3),
    options=OPTIONS,
    step=st.sampled_from(["plain", "supervised"]),
)
def test_update_has_the_length_that_step_says(steps, options, step):
    weighting = CrossBatchWeighting(step=step, **options)
    for rows in steps:
        w = weighting(gramian(rows))
    check_ranges(w)
    assert w.ce >= 0
    assert w.kd >= 0
    assert w.lam == 0
    exact = rows.double()
    norms = exact[:2].norm(dim=1)
    wanted = (exact[0] + exact[1]).norm()
    if step == "supervised" and norms.min() > 1e-150:
        wanted = norms[0] * (exact[0] / norms[0] + exact[1] / norms[1]).norm()
    if norms.max() < 1e-150 or (norms.min() < 1e-150 and norms.min() > 0):
        return  # the squares of shorter gradients are 0
    found = (w.ce * exact[0] + w.kd * exact[1]).norm()
    if step == "supervised" and found == 0 and wanted <= 2.1e-6 * norms[0]:
        return  # their combination, at least half as long as the sum, counts as vanished: 1e-6
    # Unit gradients that cancel to 1e-6 leave three digits of their sum's length.
    assert abs(found - wanted) <= 5e-3 * wanted + 1e-7 * max(
        norms[0], wanted
    ) + 4e-8 * norms.max() * (step == "plain")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@given(rows=gradients(), options=OPTIONS)
def test_gramian_in_a_small_format_gives_finite_weights(dtype, rows, options):
    """A caller's own Gramian, rounded: weights clamped to the format, never infinite or NaN."""
    largest = torch.finfo(dtype).max
    g = gramian(rows).clamp(-largest, largest).to(dtype)
    w = CrossBatchWeighting(**options)(g)
    assert all(torch.isfinite(v) for v in w.diagnostics.values())
    assert 0 <= w.w_ce <= 1
