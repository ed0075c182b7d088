"""Means, intervals, tests, power: hand-computed, against scipy, and how often intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from mdistiller.report import numbers
from mdistiller.report.statistics import (
    expected_half_width,
    holm,
    mean_interval,
    sign_test,
    spread,
    trials_needed,
    trials_to_add,
)

POINTS = st.floats(-5, 5).map(lambda x: round(x, 2))


def test_sample_deviation_divides_by_one_less_than_n():
    values = spread([1.0, 2.0, 4.0])
    assert values.mean == pytest.approx(7 / 3)
    assert values.deviation == pytest.approx(math.sqrt(7 / 3))
    assert values.n == 3


def test_one_value_has_no_deviation_and_no_value_no_spread():
    assert math.isnan(spread([70.0]).deviation)
    assert spread([]) is None
    assert numbers.accuracy(spread([70.0])) == "70.00 ± – (1)"
    assert numbers.accuracy(None) == ""


def test_interval_of_one_pair_by_hand():
    # Mean 2, deviation 1, n 3: t(0.975; 2) = 4.3027 by any table.
    interval = mean_interval([[1.0, 2.0, 3.0]])
    assert interval.mean == 2
    assert interval.df == pytest.approx(2)
    assert interval.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


@given(st.lists(st.tuples(POINTS, POINTS), min_size=2, max_size=9))
def test_one_pair_gives_scipys_paired_t_test(trials):
    ours, theirs = (np.array(side) + 70 for side in zip(*trials, strict=True))
    assume((ours - theirs).std(ddof=1) > 1e-3)
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    interval = mean_interval([ours - theirs])
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert interval.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@given(
    st.lists(POINTS, min_size=2, max_size=8),
    st.lists(POINTS, min_size=2, max_size=8),
)
def test_two_pairs_give_scipys_welch_test(a, b):
    # (mean(a) - mean(-b)) / 2 is the mean over both pairs.
    assume(np.std(a) > 1e-2 and np.std(b) > 1e-2)
    expected = stats.ttest_ind(a, [-x for x in b], equal_var=False)
    low, high = expected.confidence_interval(0.95)
    interval = mean_interval([a, b])
    assert interval.df == pytest.approx(expected.df)
    assert interval.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (2 * interval.low, 2 * interval.high) == pytest.approx((low, high))


@given(
    st.lists(st.lists(POINTS, min_size=2, max_size=5), min_size=1, max_size=5),
    st.floats(0.1, 10),
    POINTS,
)
def test_interval_moves_and_grows_with_its_differences(groups, scale, shift):
    assume(all(np.std(group) > 1e-2 for group in groups))
    before = mean_interval(groups)
    after = mean_interval([[scale * x + shift for x in group] for group in groups])
    bounds = (scale * before.low + shift, scale * before.high + shift)
    assert (after.low, after.high) == pytest.approx(bounds, abs=1e-8)
    assert mean_interval(groups[::-1]).low == pytest.approx(before.low)


def test_pooled_interval_holds_in_95_of_100_experiments():
    rng = np.random.RandomState(0)
    deviations, sizes = (0.1, 0.3, 0.6), (3, 5, 4)
    inside = 0
    for _ in range(2000):
        groups = [rng.normal(0.5, s, n) for s, n in zip(deviations, sizes, strict=True)]
        interval = mean_interval(groups)
        inside += interval.low <= 0.5 <= interval.high
    # Three standard errors of a share of 2000 are 1.5 %; Welch's approximation is a little wide.
    assert 0.935 <= inside / 2000 <= 0.985


def test_pairs_count_alike_however_many_trials_they_have():
    assert mean_interval([[1.0] * 8, [0.0, 0.0]]).mean == 0.5


def test_without_scatter_there_is_no_p_value_and_the_interval_is_a_point():
    interval = mean_interval([[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3]])
    assert (interval.low, interval.high) == (interval.mean, interval.mean)
    assert math.isnan(interval.p)


def test_one_trial_shows_no_scatter():
    interval = mean_interval([[0.4], [0.2, 0.3]])
    assert interval.mean == pytest.approx(0.325)
    assert math.isnan(interval.low)
    assert interval.n == 3
    assert numbers.bounds(interval) == "–"
    assert mean_interval([[], []]) is None


def test_sign_test_by_hand():
    # Five of five: 2 / 2^5. Ties say nothing.
    signs = sign_test([0.1, 0.2, 0.3, 0.1, 0.5, 0.0])
    assert (signs.better, signs.worse, signs.equal) == (5, 0, 1)
    assert signs.p == pytest.approx(2 / 32)
    # Four of five: 2 (1 + 5) / 2^5.
    assert sign_test([1, 1, 1, 1, -1]).p == pytest.approx(12 / 32)
    assert math.isnan(sign_test([0.0]).p)


@pytest.mark.parametrize(
    ("value", "text"), [(-0.004, "0.00"), (0.004, "0.00"), (-1.5, "−1.50"), (2, "+2.00")]
)
def test_differences_are_signed_unless_zero(value, text):
    assert numbers.fixed(value, sign=True) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8, "8 s"), (119, "119 s"), (1800, "30 min"), (36000, "10 h")]
)
def test_durations_have_the_unit_that_suits(seconds, text):
    assert numbers.duration(seconds) == text


def test_holm_by_hand():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([math.nan, 0.02, 0.9])
    assert math.isnan(found[0]) and found[1:] == pytest.approx([0.06, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_p_value_and_bonferroni(values):
    adjusted = holm(values)
    for p, q in zip(values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(values) * p) + 1e-12
    assert min(adjusted) == pytest.approx(min(1.0, len(values) * min(values)))
    assert [p for _, p in sorted(zip(values, adjusted, strict=True))] == sorted(adjusted)


# ---- power ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5,), (5, 5), (3, 8), (2, 2, 9)])
@pytest.mark.parametrize("seed", range(2))
def test_trials_needed_are_the_smallest_by_scipy(seed, sizes):
    rng = np.random.RandomState(seed)
    groups = [rng.normal(0, 0.05 + 0.4 * rng.rand(), n) for n in sizes]
    needed = trials_needed(groups)
    variances = [np.var(g, ddof=1) for g in groups]

    def width(n):
        """Of n trials with exactly these deviations, by scipy's own interval."""
        df = sum(variances) ** 2 / sum(v**2 / (n - 1) for v in variances)
        error = np.sqrt(sum(v / n for v in variances)) / len(groups)
        low, high = stats.t.interval(0.95, df, loc=0, scale=error)
        return (high - low) / 2

    assert width(needed) <= 0.15 + 1e-12
    assert needed == 2 or width(needed - 1) > 0.15
    assert expected_half_width(groups, needed) == pytest.approx(width(needed))


@pytest.mark.parametrize("sizes", [(4, 4), (3, 9), (2, 5, 3), (6,)])
def test_the_expected_width_is_that_of_the_interval_at_hand(sizes):
    rng = np.random.RandomState(len(sizes))
    groups = [rng.normal(0, 0.3, n) for n in sizes]
    interval = mean_interval(groups)
    assert expected_half_width(groups, sizes) == pytest.approx((interval.high - interval.low) / 2)
    assert interval.half_width == pytest.approx(expected_half_width(groups, sizes))


def test_trials_are_added_where_the_differences_scatter():
    noisy, quiet = np.array([0.9, -0.9, 0.6, -0.6, 0.1]), np.array([0.1, 0.0, 0.05, 0.02, 0.03])
    everywhere = trials_needed([noisy, quiet])
    more, same = trials_to_add([noisy, quiet])
    assert same == 5 < more
    assert more + same < 2 * everywhere
    assert expected_half_width([noisy, quiet], (more, same)) <= 0.15
    assert expected_half_width([noisy, quiet], (more - 1, same)) > 0.15
    assert trials_to_add([quiet, noisy]) == (same, more)
    assert trials_to_add([quiet, quiet]) == (5, 5)
    assert trials_to_add([noisy]) == (trials_needed([noisy]),)


def test_no_deviation_no_power():
    assert trials_needed([np.array([0.3])]) is None
    assert trials_needed([]) is None
    assert trials_needed([np.array([0.3, 0.3])]) == 2
    assert trials_needed([np.array([0.0, 1e6])]) is None
    assert trials_to_add([np.array([0.3])]) is None
    assert trials_to_add([np.array([0.0, 1e6])]) is None
    assert trials_to_add([np.array([0.0, 20.0])]) is None
