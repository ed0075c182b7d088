"""The theorems of docs/method.md, section 4, and what degenerate gradients give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mdistiller.weighting import READINGS, CrossBatchWeighting, combine, combined_norms, gramian

ALL = sorted(READINGS)
# Those that solve a program for one step; "regression" has tests of its own.
ADAPTIVE = [r for r in ALL if r not in ("printed", "regression")]
GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)


WIDE, NARROW = st.floats(-12, 12), st.floats(-3, 3)


@st.composite
def gradients(draw, scales=WIDE) -> torch.Tensor:
    """[3, P] gradients: random, nearly parallel or opposite ones too, of any scale."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(2, 40))
    rows = generator.standard_normal((3, size))
    relation = draw(st.sampled_from(["free", "parallel", "opposite", "aligned with G"]))
    noise = 10.0 ** draw(st.floats(-4, -1)) * generator.standard_normal(size)
    if relation == "parallel":
        rows[1] = rows[0] + noise
    elif relation == "opposite":
        rows[1] = -rows[0] + noise
    elif relation == "aligned with G":
        rows[2] = rows[0] + noise
    factors = 10.0 ** np.array([[draw(scales)] for _ in range(3)])
    return torch.from_numpy(rows * factors)


def solve(rows: torch.Tensor, **arguments):
    return CrossBatchWeighting(**arguments)(gramian(rows))


def update(rows: torch.Tensor, **arguments) -> torch.Tensor:
    w = solve(rows, **arguments)
    return w.ce * rows[0] + w.kd * rows[1]


def same_update(rows: torch.Tensor, others: torch.Tensor, factor: float = 1, **arguments) -> bool:
    """``factor`` times the update of ``rows`` is that of ``others``.

    The tolerance is of the two summands: where gradients are nearly opposite, their sum is known to
    the summands' rounding only.
    """
    w = solve(others, **arguments)
    size = float(abs(w.ce) * others[0].norm() + abs(w.kd) * others[1].norm())
    a, b = factor * update(rows, **arguments), update(others, **arguments)
    return bool((a - b).norm() <= 1e-7 * size)


def unit(v: torch.Tensor) -> torch.Tensor:
    return v / v.norm()


def direction(rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """w_ce u_ce + w_kd u_kd for every weight in ``t`` [n]: [n, P]."""
    return t[:, None] * unit(rows[0]) + (1 - t[:, None]) * unit(rows[1])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-7) -> bool:
    return bool((a - b).norm() <= tolerance * max(a.norm(), b.norm()))


def objective(reading: str, rows: torch.Tensor, t: torch.Tensor, ridge: float) -> torch.Tensor:
    """What the reading minimises, for every t; written from the text, not from the solution."""
    g, reference = direction(rows, t), unit(rows[2])
    if reading == "orthogonal":
        return (g @ reference) ** 2 + ridge * ((t - 0.5) ** 2 + (0.5 - t) ** 2)
    if reading == "align":
        return ((g - reference) ** 2).sum(1)
    return -(g @ reference) / g.norm(dim=1).clamp_min(1e-300)


@pytest.mark.parametrize("reading", ADAPTIVE)
@given(rows=gradients(), ridge=st.sampled_from([0.0, 0.05, 2.0]))
def test_no_weight_on_a_grid_is_better(reading, rows, ridge):
    w = solve(rows, reading=reading, ridge=ridge)
    assert 0 <= w.w_ce <= 1
    assert abs(w.w_ce + w.w_kd - 1) < 1e-12
    found = objective(reading, rows, w.w_ce.reshape(1), ridge)
    assert found <= objective(reading, rows, GRID, ridge).min() + 1e-9


@pytest.mark.parametrize("reading", ADAPTIVE)
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_general_solver(reading, seed):
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 6)))
    found = objective(reading, rows, solve(rows, reading=reading).w_ce.reshape(1), 0.0).item()

    def value(w: np.ndarray) -> float:
        return objective(reading, rows, torch.tensor([w[0]]), 0.0).item()

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    solutions = [
        minimize(value, start, bounds=[(0, 1)] * 2, constraints=simplex, tol=1e-14).fun
        for start in ([0.5, 0.5], [0.99, 0.01], [0.01, 0.99])
    ]
    assert found <= min(solutions) + 1e-9
    assert min(solutions) <= found + 1e-6


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients(), exponent=st.integers(-12, 12))
def test_update_is_positively_homogeneous(reading, rows, exponent):
    scale = 10.0**exponent
    assert same_update(rows, scale * rows, scale, reading=reading)


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients(), scale=st.sampled_from([1e-12, 0.3, 1e12]))
def test_length_of_the_reference_does_not_matter(reading, rows, scale):
    scaled = rows * torch.tensor([[1.0], [1.0], [scale]], dtype=rows.dtype)
    assert same_update(scaled, rows, reading=reading)


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients(NARROW), scale=st.sampled_from([1e-3, 0.5, 1e3]))
def test_scaling_the_distillation_gradient_keeps_the_direction_of_g_w(reading, rows, scale):
    scaled = rows * torch.tensor([[1.0], [scale], [1.0]], dtype=rows.dtype)

    def correction(r: torch.Tensor) -> torch.Tensor:
        return update(r, reading=reading) - (r[0] + r[1]) / 2

    c, d = correction(rows), correction(scaled)
    assume(c.norm() > 1e-6 * rows[:2].norm() and d.norm() > 1e-6 * scaled[:2].norm())
    assert close(unit(c), unit(d), 1e-5)


@pytest.mark.parametrize("reading", ALL)
@pytest.mark.parametrize("stabilize", [True, False])
@given(rows=gradients())
def test_exchanging_the_losses_exchanges_the_weights(reading, stabilize, rows):
    here = solve(rows, reading=reading, stabilize=stabilize, prefer="ce")
    there = solve(rows[[1, 0, 2]], reading=reading, stabilize=stabilize, prefer="kd")
    # The length of a nearly cancelling combination is known to eps / (1 + c_12) only.
    rtol = 1e-9 + 1e-14 / (1 + here.c_12.item() + 1e-12)
    assert torch.allclose(here.ce, there.kd, rtol=rtol)
    assert torch.allclose(here.kd, there.ce, rtol=rtol)


@given(rows=gradients())
def test_printed_does_not_depend_on_the_reference(rows):
    other = rows.clone()
    other[2] = -3 * rows[0] + rows[1]
    none = rows.clone()
    none[2] = 0
    results = [solve(r, reading="printed") for r in (rows, other, none)]
    assert results[0].ce == results[1].ce == results[2].ce
    assert results[0].kd == results[1].kd == results[2].kd


@pytest.mark.parametrize("floor", [1e-1, 1e-3, 1e-6])
@given(rows=gradients(NARROW), alpha=st.sampled_from([0.25, 0.5, 2.0]))
def test_printed_is_the_limit_of_the_printed_equations(floor, rows, alpha):
    u = rows[:2] @ rows[2]
    # Eq. 5-6 on the printed feasible set, solved on a grid, with weights of at least the floor.
    a, b = torch.meshgrid(GRID[::20] * 1.0, GRID[::20] * 1.0, indexing="ij")
    a, b = a.clamp_min(floor), b.clamp_min(floor)
    values = (u[0] * a + u[1] * b) ** 2
    best = values.masked_fill(a + b > 1 + 2 * floor, math.inf).argmin()
    w = torch.stack([a.flatten()[best], b.flatten()[best]])
    lengths = w * rows[:2].norm(dim=1)
    balanced = w * lengths.sum() / lengths  # Eq. 8
    g_w = rows[0] + balanced[1] / balanced[0] * rows[1]  # Eq. 9
    g0 = (rows[0] + rows[1]) / 2
    assume(g_w.norm() > 1e-4 * rows[0].norm())
    expected = g0 + alpha * g0.norm() / g_w.norm() * g_w  # Eq. 10-11
    assert close(update(rows, reading="printed", alpha=alpha), expected, 1e-6)


@given(rows=gradients())
def test_orthogonal_interior_solution_is_orthogonal(rows):
    w = solve(rows, reading="orthogonal")
    assume(0 < w.w_ce < 1)
    assert abs(direction(rows, w.w_ce.reshape(1)) @ unit(rows[2])) < 1e-7


@given(rows=gradients())
def test_align_is_at_least_as_near_as_vertices_and_midpoint(rows):
    t = solve(rows, reading="align").w_ce.reshape(1)
    others = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert objective("align", rows, t, 0) <= objective("align", rows, others, 0).min() + 1e-12


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients(), alpha=st.sampled_from([0.0, 0.25, 0.5, 2.0]))
def test_correction_has_the_length_that_alpha_says(reading, rows, alpha):
    g0 = (rows[0] + rows[1]) / 2
    w_ce = solve(rows, reading=reading, prefer="ce", alpha=alpha)
    w_kd = solve(rows, reading=reading, prefer="kd", alpha=alpha)
    assert w_ce.ce == w_kd.ce
    assert w_ce.kd == w_kd.kd
    correction = (w_ce.ce - 0.5) * rows[0] + (w_ce.kd - 0.5) * rows[1]
    # Of nearly opposite gradients a Gramian knows 1 + c_12, and so lengths, to rounding only.
    relative = 1e-15 / max(1 + w_ce.c_12.item(), 1e-15)
    allowed = 1e-6 * max(rows[:2].norm(dim=1)) + relative * alpha * g0.norm()
    assert abs(correction.norm() - alpha * g0.norm()) <= allowed


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients())
def test_alpha_zero_is_the_mean(reading, rows):
    w = solve(rows, reading=reading, alpha=0)
    assert w.ce == w.kd == 0.5


@pytest.mark.parametrize(("rescale", "divisor"), [(0, 1), (1, 1 + 0.7**2), (2, 1.7)])
def test_rescale(rescale, divisor):
    rows = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, scaled = solve(rows, alpha=0.7), solve(rows, alpha=0.7, rescale=rescale)
    assert torch.allclose(plain.ce / divisor, scaled.ce)
    assert torch.allclose(plain.kd / divisor, scaled.kd)


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients(), max_ratio=st.sampled_from([0.5, 10.0, 1e6]))
def test_without_stabilisation_the_preferred_weight_is_one(reading, rows, max_ratio):
    options = {"reading": reading, "stabilize": False, "max_ratio": max_ratio}
    ce, kd = solve(rows, prefer="ce", **options), solve(rows, prefer="kd", **options)
    assert ce.ce == 1
    assert kd.kd == 1
    assert 0 <= ce.kd <= max_ratio
    assert 0 <= kd.ce <= max_ratio
    # Where nothing is clipped the two differ in length only.
    if 0 < ce.kd < max_ratio and 0 < kd.ce < max_ratio:
        assert torch.allclose(ce.kd * kd.ce, torch.ones_like(ce.kd))


def test_lambda_is_that_of_equation_10():
    rows = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = solve(rows, reading="align", alpha=0.5)
    ratio = (w.w_kd / w.norm_kd) / (w.w_ce / w.norm_ce)
    g_w = rows[0] + ratio * rows[1]
    g0 = (rows[0] + rows[1]) / 2
    assert torch.allclose(w.lam, 0.5 * g0.norm() / g_w.norm())


# ---- degenerate inputs ---------------------------------------------------------------------


OPTIONS = [
    {"reading": reading, "stabilize": stabilize, "prefer": prefer, "ema": ema}
    for reading in ALL
    for stabilize in (True, False)
    for prefer in ("ce", "kd")
    for ema in (0.0, 0.9)
]


def finite(w) -> bool:
    return all(bool(torch.isfinite(v)) for v in w.diagnostics.values())


@pytest.mark.parametrize("options", OPTIONS)
def test_zero_gradients(options):
    a = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    zero = torch.zeros_like(a)
    for rows in ([zero, a, b], [a, zero, b], [zero, zero, a], [a, b, zero], [zero] * 3):
        rows = torch.stack(rows)
        w = solve(rows, alpha=0.5, **options)
        assert finite(w)
        g = w.ce * rows[0] + w.kd * rows[1]
        if not rows[0].any() and not rows[1].any():
            assert not g.any()
        elif not rows[0].any() or not rows[1].any():
            # The other gradient is used: as (1 + alpha) / 2 of it, or as it is.
            factor = 0.75 if options["stabilize"] else 1.0
            assert close(g, factor * (rows[0] + rows[1]))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parallel_gradients(options, dtype):
    a = torch.tensor([0.3, 2.0, -1.0], dtype=dtype)
    rows = torch.stack([a, 2.5 * a, torch.tensor([1.0, 0.0, 1.0], dtype=dtype)])
    w = solve(rows, **options)
    assert finite(w)
    g = w.ce * rows[0] + w.kd * rows[1]
    assert torch.allclose(unit(g).abs(), unit(a).to(g.dtype).abs(), atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_opposite_gradients_that_cancel_give_the_mean(options):
    a = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64)
    rows = torch.stack([a, -2.5 * a, torch.tensor([2.0, -0.3, 0.0], dtype=torch.float64)])
    w = solve(rows, **options)
    assert finite(w)
    # With a reference orthogonal to both, every reading but "cone" takes the midpoint.
    if options["reading"] != "cone":
        assert close(w.ce * rows[0] + w.kd * rows[1], (rows[0] + rows[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reading", ALL)
@given(seed=st.integers(0, 10**6), exponents=st.tuples(*[st.floats(-30, 30)] * 3))
def test_any_scale_and_dtype_is_finite(dtype, reading, seed, exponents):
    rows = np.random.default_rng(seed).standard_normal((3, 5))
    rows = torch.from_numpy(rows * 10.0 ** np.array(exponents)[:, None]).to(dtype)
    assume(bool(torch.isfinite(rows).all()))
    w = CrossBatchWeighting(reading=reading, alpha=0.5)(gramian(rows))
    assert finite(w)
    assert 0 <= w.w_ce <= 1
    g = combine(rows, torch.stack([w.ce, w.kd, torch.zeros_like(w.ce)]))
    exact = rows.double()
    bound = 1.5 * (exact[0] + exact[1]).norm() / 2
    info = torch.finfo(dtype)
    # Rounding to the format of the gradients, below its normal range in absolute steps.
    rounding = (
        4 * info.eps * (bound + exact[:2].norm(dim=1).max()) + 5 * info.smallest_normal * info.eps
    )
    if bound < info.max / 2:
        assert g.double().norm() <= bound + rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_gramians_dtype(dtype):
    rows = torch.eye(3, dtype=torch.float32) + 0.5
    w = CrossBatchWeighting()((rows @ rows.T).to(dtype))
    assert all(v.dtype == dtype and v.shape == () for v in w.diagnostics.values())


def test_gramian_and_combine_do_not_overflow_in_single_precision():
    rows = torch.tensor([[1e30, 1e30], [1e-30, 0.0], [1.0, 1.0]])
    g = gramian(rows)
    assert g.dtype == torch.float64
    assert g[0, 0].item() == pytest.approx(2e60, rel=1e-6)
    assert g[1, 1].item() == pytest.approx(1e-60, rel=1e-6)
    combined = combine(rows[:2], torch.tensor([0.0, 1e40], dtype=torch.float64))
    assert combined.tolist() == pytest.approx([1e10, 0.0])


@given(rows=gradients(), a=st.floats(0, 3), b=st.floats(0, 3))
def test_norms_of_sums_are_those_of_the_vectors(rows, a, b):
    weights = torch.tensor([[1.0, 1.0], [a, b]], dtype=torch.float64)
    found = combined_norms(gramian(rows)[:2, :2], weights)
    scale = (weights * rows[:2].norm(dim=1)).sum(1)
    assert ((found - (weights @ rows[:2]).norm(dim=1)).abs() <= 1e-7 * scale).all()


def test_gramian_over_several_chunks():
    rows = torch.randn(3, 2_500_001, generator=torch.Generator().manual_seed(0))
    expected = rows.double() @ rows.double().T
    assert torch.allclose(gramian(rows), expected, rtol=1e-12)
    weights = torch.tensor([0.5, -2.0, 0.25], dtype=torch.float64)
    assert torch.allclose(combine(rows, weights), (weights @ rows.double()).float())


# ---- state, arguments ----------------------------------------------------------------------


def test_ema_solves_from_the_bias_corrected_average():
    generator = torch.Generator().manual_seed(3)
    steps = [torch.randn(3, 7, dtype=torch.float64, generator=generator) for _ in range(5)]
    weighting = CrossBatchWeighting(reading="align", ema=0.8)
    cosines = []
    for rows in steps:
        w = weighting(gramian(rows))
        cosines.append(torch.stack([w.c_ce, w.c_kd, w.c_12]))
    ages = torch.arange(len(steps) - 1, -1, -1, dtype=torch.float64)
    share = 0.8**ages / (0.8**ages).sum()
    c_ce, c_kd, c_12 = (torch.stack(cosines) * share[:, None]).sum(0)
    expected = (0.5 + (c_ce - c_kd) / (2 * (1 - c_12))).clamp(0, 1)
    assert torch.allclose(w.w_ce, expected)


def test_ema_state_continues():
    generator = torch.Generator().manual_seed(4)
    steps = [gramian(torch.randn(3, 7, generator=generator)) for _ in range(6)]
    whole, first, second = (CrossBatchWeighting(ema=0.9) for _ in range(3))
    for g in steps:
        expected = whole(g)
    for g in steps[:3]:
        first(g)
    second.load_state_dict(first.state_dict())
    for g in steps[3:]:
        found = second(g)
    assert found.ce == expected.ce
    assert found.kd == expected.kd


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("reading", "aline"),
        ("alpha", -0.1),
        ("alpha", float("nan")),
        ("alpha", "1"),
        ("ridge", -1),
        ("prefer", "kl"),
        ("max_ratio", 0),
        ("rescale", 3),
        ("ema", 1.0),
        ("ema", -0.1),
        ("step", "long"),
    ],
)
def test_arguments_are_checked_at_construction(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*{value}"):
        CrossBatchWeighting(**{argument: value})


@pytest.mark.parametrize("wrong", [torch.zeros(2, 2), torch.zeros(3), torch.zeros(3, 3).long()])
def test_gramian_is_checked(wrong):
    with pytest.raises(ValueError, match="gramian"):
        CrossBatchWeighting()(wrong)


def test_no_branch_on_tensor_values():
    """On the meta device any host read of a value raises."""
    g = torch.empty(3, 3, device="meta")
    for options in OPTIONS:
        assert CrossBatchWeighting(**options)(g).ce.device.type == "meta"
