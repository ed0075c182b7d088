"""The regression reading and the lengths of CROSSBATCH.STEP (docs/method.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import nnls

from mdistiller.weighting import READINGS, CrossBatchWeighting, gramian

from .test_weighting import NARROW, close, gradients, solve, unit, update

ALL = sorted(READINGS)
FREE_STEPS = ("plain", "supervised")


@st.composite
def trainings(draw) -> list[torch.Tensor]:
    """Gradients [3, P] of a few steps, which share what is not noise; any relative scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps, size = draw(st.integers(1, 6)), draw(st.integers(2, 12))
    common = draw(st.sampled_from([0.0, 0.3, 2.0])) * rng.standard_normal((3, size))
    scales = 10.0 ** np.array([[draw(NARROW)] for _ in range(3)])
    noise = rng.standard_normal((steps, 3, size))
    return list(torch.from_numpy((common + noise) * scales))


def after(steps: list[torch.Tensor], **options):
    """What the last step's weights are, and the update."""
    weighting = CrossBatchWeighting(**options)
    for rows in steps:
        w = weighting(gramian(rows))
    return w, w.ce * rows[0] + w.kd * rows[1]


def averaging(steps: int, ema: float) -> np.ndarray:
    ages = np.arange(steps - 1, -1, -1.0)
    return ema**ages / (ema**ages).sum()


def residual(steps, ema: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """E |x g_ce + y g_kd - G|^2 for each x and y, from the vectors themselves."""
    total = 0.0
    for share, rows in zip(averaging(len(steps), ema), steps, strict=True):
        ce, kd, reference = rows.numpy()
        gap = x[..., None] * ce + y[..., None] * kd - reference
        total = total + share * (gap**2).sum(-1)
    return total


def oracle(steps, ema: float) -> np.ndarray:
    """The same by a solver: weights [2] of g_ce and g_kd."""
    factors = np.sqrt(averaging(len(steps), ema))
    stacked = np.concatenate([f * rows.numpy() for f, rows in zip(factors, steps, strict=True)], 1)
    sizes = np.linalg.norm(stacked, axis=1)
    unit_rows = stacked / sizes[:, None]  # so that its tolerance suits any scale
    return nnls(unit_rows[:2].T, unit_rows[2])[0] * sizes[2] / sizes[:2]


@given(steps=trainings(), ema=st.sampled_from([1e-9, 0.5, 0.99]))
def test_regression_is_non_negative_least_squares(steps, ema):
    expected = oracle(steps, ema)
    assume(expected.any())
    w, _ = after(steps, reading="regression", ema=ema, step="plain")
    found = np.array([w.ce.item(), w.kd.item()])
    lengths = np.sqrt(sum((rows[:2] ** 2).sum(1).numpy() for rows in steps))
    a, b = (v * lengths / np.linalg.norm(v * lengths) for v in (found, expected))
    assert np.allclose(a, b, atol=1e-6)


@given(steps=trainings(), ema=st.sampled_from([0.5, 0.99]))
def test_no_weights_on_a_grid_predict_the_reference_better(steps, ema):
    w, _ = after(steps, reading="regression", ema=ema, step="plain")
    shares, stacked = averaging(len(steps), ema), torch.stack(steps).numpy()
    lengths = np.sqrt(np.einsum("t,tij->i", shares, stacked**2))
    # The reading gives a direction; of its multiples the best one is compared.
    direction = np.array([w.ce.item(), w.kd.item()])
    direction = direction / (direction * lengths[:2]).max()
    along = np.einsum("w,twj->tj", direction, stacked[:, :2])
    multiple = max(0.0, np.einsum("t,tj,tj", shares, along, stacked[:, 2]))
    multiple /= np.einsum("t,tj,tj", shares, along, along)
    (best,) = residual(steps, ema, *(np.array([multiple * d]) for d in direction))
    axis = np.linspace(0, 20, 201) * lengths[2]
    x, y = np.meshgrid(axis / lengths[0], axis / lengths[1])
    assert best <= residual(steps, ema, x, y).min() + 1e-8 * lengths[2] ** 2


@given(rows=gradients(), repeats=st.integers(1, 4), step=st.sampled_from(["paper", *FREE_STEPS]))
def test_regression_on_a_constant_gramian_is_cone(rows, repeats, step):
    c = solve(rows)
    # Where neither loss predicts the reference the two readings differ, on purpose.
    assume(max(c.c_ce, c.c_kd) > 1e-6)
    w, found = after([rows] * repeats, reading="regression", step=step)
    expected = solve(rows, reading="cone", step=step)
    assert w.w_ce.item() == pytest.approx(expected.w_ce.item(), abs=1e-5)
    assert close(found, expected.ce * rows[0] + expected.kd * rows[1], 1e-4)


@pytest.mark.parametrize("step", FREE_STEPS)
@given(rows=gradients(), scale=st.sampled_from([1e-9, 1.0, 1e9]))
def test_reference_that_is_the_supervised_gradient_leaves_that_alone(step, rows, scale):
    assume(abs(solve(rows).c_12) < 0.999)
    rows[2] = scale * rows[0]
    w = solve(rows, reading="regression", step=step)
    assert w.w_ce.item() == pytest.approx(1, abs=1e-12)
    assert w.w_kd.item() == pytest.approx(0, abs=1e-12)
    wanted = rows[0] + rows[1]
    if step == "supervised":
        wanted = rows[0].norm() * (unit(rows[0]) + unit(rows[1]))
    assert close(w.ce * rows[0] + w.kd * rows[1], unit(rows[0]) * wanted.norm(), 1e-6)


def test_the_weight_of_noise_goes_to_zero_as_the_average_lengthens():
    rng = torch.Generator().manual_seed(0)
    signal = torch.randn(30, generator=rng, dtype=torch.float64)

    def mean_weight(ema: float, steps: int) -> float:
        weighting, tail = CrossBatchWeighting("regression", ema=ema, step="plain"), []
        for number in range(steps):
            noise = torch.randn(3, 30, generator=rng, dtype=torch.float64)
            # A noisy supervised and reference gradient; the distillation gradient is only noise.
            rows = torch.stack([signal + 2 * noise[0], 5 * noise[1], signal + 2 * noise[2]])
            w = weighting(gramian(rows))
            if number >= steps // 2:
                tail.append((w.kd / w.ce * 5).item())
        return sum(tail) / len(tail)

    short, middle, long = (mean_weight(e, n) for e, n in ((0.5, 400), (0.97, 400), (0.999, 4000)))
    assert short > 2 * middle > 8 * long
    assert long < 0.02


def test_a_loss_that_points_away_from_the_reference_gets_no_weight():
    rng = torch.Generator().manual_seed(1)
    signal = torch.randn(30, generator=rng, dtype=torch.float64)
    steps = []
    for _ in range(200):
        noise = torch.randn(3, 30, generator=rng, dtype=torch.float64)
        steps.append(torch.stack([signal, -signal, signal]) + noise)
    w, _ = after(steps, reading="regression", step="supervised")
    assert w.w_kd == 0
    assert w.w_ce == 1


# ---- lengths -------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ALL)
@given(steps=trainings(), scale=st.sampled_from([1e-6, 0.1, 1e6]), ema=st.sampled_from([0.0, 0.9]))
def test_scale_of_the_distillation_loss(reading, steps, scale, ema):
    factor = torch.tensor([[1.0], [scale], [1.0]], dtype=torch.float64)
    scaled = [rows * factor for rows in steps]
    assume(solve(steps[-1]).c_12 > -0.999)
    options = {"reading": reading, "ema": ema}
    w, supervised = after(steps, step="supervised", **options)
    assert w.ce * w.ce + w.kd * w.kd > 0
    assert close(after(scaled, step="supervised", **options)[1], supervised)
    a, b = (unit(after(s, step="plain", **options)[1]) for s in (steps, scaled))
    assert close(a, b)
    assert close(a, unit(supervised))


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients())
def test_lengths_of_the_update(reading, rows):
    assume(solve(rows).c_12 > -0.99)
    plain = update(rows, reading=reading, step="plain").norm()
    assert plain.item() == pytest.approx((rows[0] + rows[1]).norm().item(), rel=1e-6)
    supervised = update(rows, reading=reading, step="supervised").norm()
    expected = rows[0].norm() * (unit(rows[0]) + unit(rows[1])).norm()
    assert supervised.item() == pytest.approx(expected.item(), rel=1e-6)
    # alpha 1 takes steps of at most the plain length, and of that where the gradients agree.
    assert update(rows, reading=reading).norm() <= plain * (1 + 1e-9)


@pytest.mark.parametrize("reading", ALL)
@pytest.mark.parametrize("step", FREE_STEPS)
@given(rows=gradients(), exponent=st.integers(-12, 12))
def test_update_of_any_step_is_positively_homogeneous(reading, step, rows, exponent):
    assume(solve(rows).c_12 > -0.999)  # beyond, the length of the sum is known to few digits
    scale = 10.0**exponent
    options = {"reading": reading, "step": step}
    assert close(update(scale * rows, **options), scale * update(rows, **options))
    longer = rows * torch.tensor([[1.0], [1.0], [scale]], dtype=rows.dtype)
    assert close(update(longer, **options), update(rows, **options))


@pytest.mark.parametrize("reading", ALL)
@given(rows=gradients())
def test_exchanging_the_losses_exchanges_the_weights_of_a_plain_step(reading, rows):
    here, there = (solve(r, reading=reading, step="plain") for r in (rows, rows[[1, 0, 2]]))
    rtol = 1e-9 + 1e-14 / (1 + here.c_12.item() + 1e-12)
    assert torch.allclose(here.ce, there.kd, rtol=rtol)
    assert torch.allclose(here.kd, there.ce, rtol=rtol)


@pytest.mark.parametrize("step", FREE_STEPS)
@given(rows=gradients(), alpha=st.sampled_from([0.0, 3.0]), prefer=st.sampled_from(["ce", "kd"]))
def test_alpha_and_prefer_are_of_the_paper_s_step_alone(step, rows, alpha, prefer):
    default, other = solve(rows, step=step), solve(rows, step=step, alpha=alpha, prefer=prefer)
    assert default.ce == other.ce
    assert default.kd == other.kd


# ---- degenerate inputs, state, arguments ---------------------------------------------------


OPTIONS = [{"reading": r, "step": s, "ema": e} for r in ALL for s in FREE_STEPS for e in (0.0, 0.9)]


@pytest.mark.parametrize("options", OPTIONS)
def test_zero_parallel_and_opposite_gradients(options):
    a = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    b = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    zero = torch.zeros_like(a)
    for rows in ([zero, a, b], [a, zero, b], [zero, zero, a], [zero] * 3):
        # What is left is used as it is.
        assert close(update(torch.stack(rows), **options), rows[0] + rows[1])
    for rows in ([a, b, zero], [a, a, b], [a, 3 * a, b], [a, a, a], [a, -a, a], [a, -a, zero]):
        w = solve(torch.stack(rows), **options)
        assert all(bool(torch.isfinite(v)) for v in w.diagnostics.values())
        assert 0 <= w.w_ce <= 1
    plain = {**options, "step": "plain"}
    bisector = update(torch.stack([a, b, zero]), **plain)
    assert close(unit(bisector), unit(unit(a) + unit(b)))
    assert close(update(torch.stack([a, 3 * a, b]), **plain), 4 * a)


def test_regression_takes_the_bisector_where_no_loss_predicts_the_reference():
    a, b, c = torch.eye(3, dtype=torch.float64)
    for reference in (-a - b, c, -2 * a - b):
        assert solve(torch.stack([a, 5 * b, reference]), reading="regression").w_ce == 0.5


@pytest.mark.parametrize("present", [0, 1])
def test_a_gradient_that_vanishes_later_leaves_the_other_one(present):
    generator = torch.Generator().manual_seed(5)
    steps = [torch.randn(3, 7, dtype=torch.float64, generator=generator) for _ in range(6)]
    steps[-1][1 - present] = 0
    for step in FREE_STEPS:
        _, found = after(steps, reading="regression", step=step)
        assert close(found, steps[-1][present])


def test_average_continues_and_another_reading_s_is_left_out():
    generator = torch.Generator().manual_seed(4)
    steps = [gramian(torch.randn(3, 7, generator=generator)) for _ in range(6)]
    whole, first, second = (CrossBatchWeighting("regression", step="plain") for _ in range(3))
    assert whole.ema == 0.99
    for g in steps:
        expected = whole(g)
    for g in steps[:3]:
        first(g)
    second.load_state_dict(first.state_dict())
    for g in steps[3:]:
        found = second(g)
    assert found.ce == expected.ce
    assert found.kd == expected.kd
    cosines = CrossBatchWeighting("align", ema=0.9)
    cosines(steps[0])
    for state, other in ((cosines, "regression"), (first, "align")):
        new = CrossBatchWeighting(other, ema=0.9)
        new.load_state_dict(state.state_dict())
        assert new(steps[1]).ce == CrossBatchWeighting(other, ema=0.9)(steps[1]).ce


def test_default_decay_of_the_average_is_the_reading_s():
    found = {reading: CrossBatchWeighting(reading).ema for reading in ALL}
    assert found == {reading: 0.99 if reading == "regression" else 0.0 for reading in ALL}
    assert CrossBatchWeighting("regression", ema=0.5).ema == 0.5


@pytest.mark.parametrize("other", [{"stabilize": False}, {"rescale": 1}, {"rescale": 2}])
@pytest.mark.parametrize("step", FREE_STEPS)
def test_two_lengths_at_once_are_refused(step, other):
    (name,) = other
    with pytest.raises(ValueError, match=f"step {step} sets the length.*{name}"):
        CrossBatchWeighting(step=step, **other)


def test_no_branch_on_tensor_values():
    """On the meta device any host read of a value raises."""
    g = torch.empty(3, 3, device="meta")
    for options in OPTIONS:
        assert CrossBatchWeighting(**options)(g).ce.device.type == "meta"
