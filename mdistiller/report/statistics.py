"""Means, intervals, tests and their power over trials; docs/report.md defines each in words."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # not stats, whose import takes most of a second

Values = Sequence[float] | np.ndarray

LEVEL = 0.95
# What grids are to tell apart: half the length of an interval, in percentage points.
HALF_WIDTH = 0.15
# Beyond, a number of trials only says that there is no end of it.
_MOST, _MOST_ADDED = 100_000, 1_000


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (divisor n - 1, NaN for n = 1) of n values."""

    mean: float
    deviation: float
    n: int


def spread(values: Values) -> Spread | None:
    """None of no values."""
    found = np.asarray(values, dtype=float)
    if len(found) == 0:
        return None
    deviation = float(found.std(ddof=1)) if len(found) > 1 else math.nan
    return Spread(float(found.mean()), deviation, len(found))


@dataclass(frozen=True)
class Interval:
    """A mean difference with its two-sided 95 % t interval.

    Attributes:
        low, high: bounds; NaN where a pair has one trial only, which shows no scatter.
        df: degrees of freedom of the t distribution.
        p: two-sided p value of the t test that the mean is zero; NaN without scatter.
        n: number of differences.
    """

    mean: float
    low: float
    high: float
    df: float
    p: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def welch(variances: Values, counts: Sequence[int] | np.ndarray) -> tuple[float, float]:
    """Standard error of the mean over C groups of their means, and its degrees of freedom.

    ``sqrt(sum v_c) / C`` and ``(sum v_c)^2 / sum (v_c^2 / (n_c - 1))`` with ``v_c = s_c^2 / n_c``
    (Welch, Satterthwaite). Without any variance the error is 0 and df is NaN.

    Args:
        variances: s_c^2 of each group, divisor n - 1, [C].
        counts: n_c of each group, 2 or more, [C].
    """
    n = np.asarray(counts)
    each = np.asarray(variances) / n
    total = float(each.sum())
    if total == 0:
        return 0.0, math.nan
    df = 1 / float(np.sum((each / total) ** 2 / (n - 1)))
    return math.sqrt(total) / len(each), df


def t_reach(error: float, df: float) -> float:
    """Half the length of the two-sided 95 % t interval."""
    return float(special.stdtrit(df, (1 + LEVEL) / 2)) * error


def mean_interval(groups: Sequence[Values]) -> Interval | None:
    """The mean over groups of each group's mean paired difference, with its interval.

    Groups (pairs of networks) have seeds of their own, so their trials are independent, and each
    may scatter differently: the variance of the mean over C groups is the sum of s_c^2 / n_c over
    C^2, with Welch and Satterthwaite's degrees of freedom. Of one group it is the ordinary paired
    t interval. The groups themselves are taken as given, not as a sample of all groups.

    Args:
        groups: paired differences, [C][n_c]; empty groups are left out.
    """
    filled = [np.asarray(g, dtype=float) for g in groups if len(g)]
    if not filled:
        return None
    n = sum(map(len, filled))
    mean = float(np.mean([g.mean() for g in filled]))
    if min(map(len, filled)) < 2:
        return Interval(mean, math.nan, math.nan, math.nan, math.nan, n)
    error, df = welch([g.var(ddof=1) for g in filled], [len(g) for g in filled])
    # Equal differences may leave rounding noise as their deviation.
    if error <= 1e-12 * max(np.abs(np.concatenate(filled)).max(), 1e-300):
        return Interval(mean, mean, mean, math.nan, math.nan, n)
    reach = t_reach(error, df)
    p = float(2 * special.stdtr(df, -abs(mean) / error))
    return Interval(mean, mean - reach, mean + reach, df, p, n)


def holm(p_values: Values) -> list[float]:
    """p values adjusted for their number by Holm's step-down rule; NaN counts as 1 and stays NaN.

    With adjusted values below a level taken as findings, the chance of one false finding or more
    is at most that level, whatever the tests have to do with one another.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(np.where(np.isnan(values), 1.0, values))
    steps = np.minimum(values[order] * np.arange(len(values), 0, -1), 1.0)
    adjusted = np.full(len(values), math.nan)
    adjusted[order] = np.fmax.accumulate(steps)
    adjusted[np.isnan(values)] = math.nan
    return adjusted.tolist()


@dataclass(frozen=True)
class Signs:
    """How many differences are above, below and equal to zero, and the exact sign test's p."""

    better: int
    worse: int
    equal: int
    p: float


def sign_test(differences: Values) -> Signs:
    """Exact two-sided sign test: better or worse is a fair coin, ties are left out.

    p is NaN where nothing but ties is left.
    """
    found = np.asarray(differences, dtype=float)
    better, worse = int((found > 0).sum()), int((found < 0).sum())
    n = better + worse
    # As many on the rarer side or fewer, and the same on the other side.
    p = min(1.0, 2 * float(special.bdtr(min(better, worse), n, 0.5))) if n else math.nan
    return Signs(better, worse, len(found) - n, p)


# ---- power -----------------------------------------------------------------------------------


def pooled_deviation(groups: Sequence[Values]) -> float:
    """Root of the mean variance (divisor n - 1) over groups of two values or more each."""
    return float(np.sqrt(np.mean([np.var(g, ddof=1) for g in groups])))


def expected_half_width(
    groups: Sequence[Values], counts: int | Sequence[int] | np.ndarray
) -> float:
    """Half-width of the interval of :func:`mean_interval` with other numbers of trials.

    Args:
        groups: paired differences, [C][n at hand], two or more in each, whose deviations count.
        counts: trials n_c of each group, [C], or of every group; 2 or more.
    """
    variances = np.array([np.var(g, ddof=1) for g in groups])
    error, df = welch(variances, np.broadcast_to(np.asarray(counts), len(groups)))
    return t_reach(error, df) if error else 0.0


def trials_needed(groups: Sequence[Values], width: float = HALF_WIDTH) -> int | None:
    """The smallest number of trials a group with :func:`expected_half_width` <= ``width``.

    Found by trying, since t itself depends on n.

    Returns:
        None if a group has fewer than two values, or if it is beyond all reason.
    """
    if not groups or min(map(len, groups)) < 2:
        return None
    # The half-width falls as n grows.
    tried = range(2, _MOST)
    index = bisect_left(tried, True, key=lambda n: expected_half_width(groups, n) <= width)
    return tried[index] if index < len(tried) else None


def trials_to_add(groups: Sequence[Values], width: float = HALF_WIDTH) -> tuple[int, ...] | None:
    """Trial counts with :func:`expected_half_width` <= ``width``, no less than those at hand.

    Each further trial goes where it narrows the interval most, which is fewer trials than the
    same number everywhere if the groups scatter differently.

    Returns:
        n_c of each group, [C]; None as in :func:`trials_needed`.
    """
    if trials_needed(groups, width) is None:
        return None
    counts = np.array([len(g) for g in groups])
    steps = np.eye(len(groups), dtype=int)
    while expected_half_width(groups, counts) > width:
        if counts.sum() > _MOST_ADDED:
            return None
        candidates = [counts + step for step in steps]
        counts = min(candidates, key=lambda c: expected_half_width(groups, c))
    return tuple(counts.tolist())
