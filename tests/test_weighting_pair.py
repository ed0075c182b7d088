"""The weightings of two gradients as mathematics: what their papers promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mdistiller.errors import MdistillerError
from mdistiller.weighting import (
    DecaySchedule,
    GradNormWeighting,
    PairAggregator,
    cosine_gate,
    gradnorm_gradient,
    gradnorm_targets,
    gramian,
    pair_statistics,
    uncertainty_gradient,
    uncertainty_weights,
)
from mdistiller.weighting._state import load_module_state, module_state
from mdistiller.weighting.aggregators import method_names, parse_arguments

POSITIVE = st.floats(1e-3, 1e3)


def pairs(low: float = -6, high: float = 6):
    """[2, P] gradients with scales between the given powers of ten."""

    def make(seed: int, size: int, a: float, b: float) -> torch.Tensor:
        rows = np.random.default_rng(seed).standard_normal((2, size))
        return torch.from_numpy(rows * 10.0 ** np.array([[a], [b]]))

    scale = st.floats(low, high)
    return st.builds(make, st.integers(0, 2**32 - 1), st.integers(2, 30), scale, scale)


# ---- the pair ------------------------------------------------------------------------------


@given(pairs())
def test_statistics_are_norms_and_cosine(rows):
    found = pair_statistics(gramian(rows))
    cosine = torch.cosine_similarity(rows[0], rows[1], dim=0, eps=0)
    assert found["norm_ce"] == pytest.approx(rows[0].norm().item(), rel=1e-9)
    assert found["norm_kd"] == pytest.approx(rows[1].norm().item(), rel=1e-9)
    assert found["c_12"] == pytest.approx(cosine.item(), abs=1e-9)
    assert found["conflict"] == float(cosine < 0)


@given(pairs(), st.booleans())
def test_gated_update_never_opposes_either_gradient_it_uses(rows, weighted):
    ce, kd = cosine_gate(gramian(rows), weighted)
    cosine = torch.cosine_similarity(rows[0], rows[1], dim=0, eps=0)
    assert ce == 1
    assert kd == pytest.approx(max(0.0, cosine.item()) if weighted else float(cosine > 0), abs=1e-9)
    update = ce * rows[0] + kd * rows[1]
    assert update @ rows[0] >= rows[0] @ rows[0] * (1 - 1e-9)


def test_gate_of_zero_and_of_broken_gradients():
    some = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    for rows in (some, some.flip(0), some * 0):
        assert cosine_gate(gramian(rows)).tolist() == [1, 0]
    some[1, 0] = math.nan
    assert cosine_gate(gramian(some)).isnan().any()


# ---- GradNorm ------------------------------------------------------------------------------


@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE), min_size=2, max_size=2), st.floats(0, 3))
def test_gradnorm_gradient_is_that_of_its_loss(triples, alpha):
    weights, norms, ratios = (
        torch.tensor(x, dtype=torch.float64) for x in zip(*triples, strict=True)
    )
    targets = gradnorm_targets(weights * norms, ratios, alpha)
    free = weights.clone().requires_grad_()
    (free * norms - targets).abs().sum().backward()
    assert torch.allclose(gradnorm_gradient(weights, norms, ratios, alpha), free.grad)


@given(st.tuples(POSITIVE, POSITIVE))
def test_gradnorm_targets_are_equal_for_equal_rates_and_for_alpha_zero(norms):
    norms = torch.tensor(norms, dtype=torch.float64)
    for ratios, alpha in ((torch.ones(2), 1.5), (torch.tensor([0.2, 3.0]), 0.0)):
        targets = gradnorm_targets(norms, ratios.double(), alpha)
        assert targets.tolist() == pytest.approx([norms.mean().item()] * 2)


@given(st.tuples(POSITIVE, POSITIVE), st.lists(st.tuples(POSITIVE, POSITIVE), max_size=8))
def test_gradnorm_weights_stay_positive_and_sum_to_two(norms, losses):
    weighting = GradNormWeighting(lr=0.5)
    norms = torch.tensor(norms, dtype=torch.float64)
    for i, loss in enumerate([(1.0, 1.0), *losses]):
        weights = weighting(norms, torch.tensor(loss))
        assert weights.min() > 0
        assert weights.sum().item() == pytest.approx(2)
        assert i > 0 or weights.tolist() == [1, 1]


def test_gradnorm_balances_norms_of_a_tenfold_difference():
    weighting, norms = GradNormWeighting(alpha=0.0, lr=0.001), torch.tensor([3.0, 0.3])
    for _ in range(2000):
        weights = weighting(norms, torch.ones(2))
    assert weights[0] * norms[0] == pytest.approx(weights[1].item() * 0.3, rel=0.1)


def test_gradnorm_gives_the_slower_loss_more():
    weighting, norms = GradNormWeighting(alpha=1.0, lr=0.01), torch.ones(2)
    weighting(norms, torch.tensor([2.0, 30.0]))
    for _ in range(50):  # the first loss has halved, the second one has not moved
        weights = weighting(norms, torch.tensor([1.0, 30.0]))
    assert weights[1] / weights[0] == pytest.approx(2, rel=0.1)


def test_gradnorm_of_losses_without_a_rate_is_finite():
    weighting = GradNormWeighting()
    for losses in ([0.0, -1.0], [1.0, 1.0], [-3.0, 0.0]):
        assert weighting(torch.tensor([1.0, 0.0]), torch.tensor(losses)).isfinite().all()


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"lr": 0.0}, {"lr": math.nan}])
def test_gradnorm_refuses_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        GradNormWeighting(**bad)


# ---- uncertainty ---------------------------------------------------------------------------


@given(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), st.tuples(POSITIVE, POSITIVE))
def test_uncertainty_gradient_is_that_of_the_objective(variances, losses):
    s = torch.tensor(variances, dtype=torch.float64, requires_grad=True)
    losses = torch.tensor(losses, dtype=torch.float64)
    ((-s).exp() * losses + s / 2).sum().backward()
    assert torch.allclose(uncertainty_gradient(s.detach(), losses), s.grad)
    best = (2 * losses).log()
    assert torch.allclose(uncertainty_gradient(best, losses), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(uncertainty_weights(best), 1 / (2 * losses))


# ---- decay ---------------------------------------------------------------------------------


def test_decay_is_the_papers():
    schedule = DecaySchedule(start=0.5, end=1.0, beta=0.05)
    assert schedule(0) == schedule(0.5) == (0.1, 0.9)
    assert schedule(0.75) == pytest.approx((0.55, 0.45))
    assert schedule(1.0) == pytest.approx((1.0, 0.05))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_decay_is_monotone_and_stays_between_its_ends(a, b, s, t):
    schedule = DecaySchedule(start=min(a, b), end=max(a, b), beta=0.0)
    (ce, kd), (later_ce, later_kd) = schedule(min(s, t)), schedule(max(s, t))
    assert 0.1 <= ce <= later_ce <= 1.0
    assert 0.9 >= kd >= later_kd >= 0.0


@pytest.mark.parametrize(
    "bad", [{"start": -0.1}, {"start": 0.6, "end": 0.5}, {"end": 1.1}, {"beta": -1.0}]
)
def test_decay_refuses_impossible_schedules(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        DecaySchedule(**bad)


# ---- torchjd's methods ---------------------------------------------------------------------

ARGUMENTS = {"Constant": {"weights": [0.25, 3]}, "TrimmedMean": {"trim_number": 0}}
NEEDS = {"CAGrad": "cvxpy", "NashMTL": "ecos", "UPGrad": "quadprog", "DualProj": "quadprog"}


def aggregator(method: str, like=None, **arguments) -> PairAggregator:
    if method in NEEDS:
        pytest.importorskip(NEEDS[method])
    return PairAggregator(method, {**ARGUMENTS.get(method, {}), **arguments}, like)


def update(method, rows: torch.Tensor) -> torch.Tensor:
    weights, combined = method(rows, gramian(rows))
    return weights.to(rows) @ rows if combined is None else combined


def test_the_papers_methods_are_there():
    named = "MGDA PCGrad FairGrad CAGrad IMTLG NashMTL AlignedMTL UPGrad GradVac DualProj Random"
    assert set(named.split()) <= set(method_names())


# Stated by torchjd in a form of which cvxpy warns; PairAggregator hides it, plain torchjd does not.
@pytest.mark.filterwarnings("ignore:(?s).*parameterized problem that is not DPP:UserWarning")
@pytest.mark.parametrize("method", method_names())
def test_every_method_gives_torchjds_own_update(method):
    import torchjd.aggregation

    rows = torch.randn(2, 40, dtype=torch.float64)
    ours = aggregator(method, rows)
    arguments = {k: ours._tensors(v) for k, v in ours._arguments.items()}
    theirs = getattr(torchjd.aggregation, method)(**arguments)
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = theirs(rows)
        torch.manual_seed(seed)
        assert torch.allclose(update(ours, rows), expected, rtol=1e-6, atol=1e-9)


@given(pairs(-2, 2))
def test_mgda_is_the_shortest_convex_combination(rows):
    weights, _ = PairAggregator("MGDA")(rows, gramian(rows))
    shortest = (weights @ rows).norm()
    t = torch.linspace(0, 1, 501, dtype=torch.float64)[:, None]
    assert weights.sum().item() == pytest.approx(1)
    assert shortest <= (t * rows[0] + (1 - t) * rows[1]).norm(dim=1).min() * (1 + 1e-2)


@given(pairs(-2, 2))
def test_pcgrad_projects_each_gradient_off_the_other_where_they_conflict(rows):
    weights, _ = PairAggregator("PCGrad")(rows, gramian(rows))
    dot = rows[0] @ rows[1]
    first, second = rows[0], rows[1]
    if dot < 0:
        first = rows[0] - dot / (rows[1] @ rows[1]) * rows[1]
        second = rows[1] - dot / (rows[0] @ rows[0]) * rows[0]
    expected = first + second
    assert torch.allclose(weights @ rows, expected, rtol=1e-6, atol=1e-9 * rows.norm().item())


def test_weights_of_a_method_that_is_no_weighted_sum_are_its_nearest():
    rows = torch.randn(2, 30, dtype=torch.float64)
    weights, combined = aggregator("GradDrop", rows)(rows, gramian(rows))
    rest = combined - weights @ rows
    assert (rows @ rest).abs().max() < 1e-9
    assert rest.norm() > 1e-3


@pytest.mark.parametrize("method", ["GradVac", "PCD", "ExcessMTL", "NashMTL", "CAGrad", "PCGrad"])
def test_method_continues_from_its_state(method, tmp_path):
    if method not in method_names():
        pytest.skip("not in this torchjd")
    # Solved in every step, NashMTL's weights do not depend on the last ones.
    options = {"update_weights_every": 4} if method == "NashMTL" else {}
    steps = torch.randn(6, 2, 20)
    whole, part = (aggregator(method, steps, **options) for _ in range(2))
    for rows in steps[:3]:
        update(whole, rows)
    torch.save(whole.state_dict(), tmp_path / "state")
    part.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for rows in steps[3:]:
        torch.manual_seed(3)
        expected = update(whole, rows)
        torch.manual_seed(3)
        assert torch.equal(update(part, rows), expected)
    if method in ("GradVac", "PCD", "ExcessMTL", "NashMTL"):
        fresh = aggregator(method, steps, **options)
        assert not torch.equal(update(fresh, steps[3]), update(whole, steps[3]))
    with pytest.raises(ValueError, match="method .*, not MGDA"):
        PairAggregator("MGDA").load_state_dict(whole.state_dict())


def test_state_of_a_module_is_all_but_its_arguments_and_its_tools():
    class Counter(nn.Module):
        def __init__(self, gamma: float, size: int = 2) -> None:
            super().__init__()
            self._gamma, self.tool = gamma, (lambda x: x)
            self.count, self.key = 0, None
            self.array, self.scalar = np.ones(3, dtype=np.float32), np.float64(2.5)
            self.register_buffer("_sum", None)

    a, b = nn.Sequential(Counter(0.5)), nn.Sequential(Counter(0.7))
    a[0].count, a[0].key = 3, (2, torch.float64, torch.device("cpu"))
    a[0].array[1] = 7
    a[0]._sum = torch.arange(2.0)
    state = module_state(a)
    a[0].array[1] = 8  # the state is a copy
    load_module_state(b, state, torch.device("cpu"))
    assert (b[0].count, b[0].key, b[0]._gamma) == (3, a[0].key, 0.7)
    assert b[0].array.tolist() == [1, 7, 1]
    assert b[0].array.dtype == np.float32
    assert b[0].scalar == 2.5
    assert torch.equal(b[0]._sum, torch.arange(2.0))
    assert "tool" not in state["0"]


def test_state_that_cannot_be_saved_is_refused(monkeypatch):
    import torchjd.aggregation as torchjd

    class Forgetful(torchjd.Aggregator):
        def __init__(self) -> None:
            super().__init__()
            self.history = {}

        def forward(self, matrix):
            self.history[len(self.history)] = matrix
            return sum(self.history.values()).sum(0)

    monkeypatch.setattr(torchjd, "Mean", Forgetful)
    with pytest.raises(ValueError, match="Mean has a state that cannot be saved"):
        PairAggregator("Mean")


def test_trying_a_method_out_leaves_the_random_stream_alone():
    before = torch.get_rng_state()
    for method in ("PCGrad", "Random", "GradDrop", "GradVac"):
        PairAggregator(method)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("PCgrad", {}, ["unknown method 'PCgrad'", "did you mean 'PCGrad'", "valid names", "MGDA"]),
        ("Krum", {"n_byzantine": 0}, ["at least three gradients", "valid names"]),
        ("MoDo", {}, ["two independent batches"]),
        ("Aggregator", {}, ["unknown method 'Aggregator'"]),
        ("TrimmedMean", {}, ["trim_number", "its arguments"]),
        ("TrimmedMean", {"trim_number": 1}, ["cannot combine two gradients"]),
        ("Constant", {"weights": [1, 2, 3]}, ["cannot combine two gradients"]),
        ("MGDA", {"epsilon": -1}, ["epsilon must be positive"]),
        ("MGDA", {"eps": 1}, ["eps", "epsilon, max_iters"]),
        ("PCGrad", {"c": 1}, ["its arguments: none"]),
    ],
)
def test_refusals_are_one_line_that_says_why(method, arguments, words):
    with pytest.raises(ValueError) as error:
        PairAggregator(method, arguments)
    assert "\n" not in str(error.value)
    assert [w for w in words if w not in str(error.value)] == []


@pytest.mark.parametrize(("method", "package"), sorted(NEEDS.items()))
def test_missing_package_is_named(method, package, monkeypatch):
    import torchjd._mixins

    monkeypatch.setattr(torchjd._mixins, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"{method}: .*{package}.*pip install") as error:
        PairAggregator(method)
    assert "\n" not in str(error.value)


def test_nan_comes_out_as_nan_and_a_solver_that_fails_says_so():
    rows = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    for method in ("FairGrad", "MGDA", "AlignedMTL", "PCGrad"):
        assert update(PairAggregator(method), rows).isnan().any(), method
    working = PairAggregator("MGDA")

    def fail(gramian):
        raise np.linalg.LinAlgError("singular\nmatrix")

    working._module.gramian_weighting.forward = fail
    sound = torch.eye(2)
    with pytest.raises(MdistillerError, match="MGDA failed.*singular mat"):
        working(sound, gramian(sound))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("c=0.4, norm_eps=1e-4", {"c": 0.4, "norm_eps": 1e-4}),
        (
            "pref_vector=[0.3, -1], scale_mode='rmse'",
            {"pref_vector": [0.3, -1], "scale_mode": "rmse"},
        ),
    ],
)
def test_arguments_are_read_as_python(text, expected):
    assert parse_arguments(text) == expected


@pytest.mark.parametrize("text", ["0.4", "c=", "c=print(1)", "**{'c': 1}", "c=1) or (1", "c=x"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="as in Python"):
        parse_arguments(text)
