"""Means, deviations, intervals and tests over trials; docs/report.md defines each in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (divisor n - 1, NaN for n = 1) of n values."""

    mean: float
    deviation: float
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return None
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(values.mean()), deviation, len(values))


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


def welch(variances: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Standard error of the mean over C groups of their means, and its degrees of freedom.

    ``sqrt(sum v_c) / C`` and ``(sum v_c)^2 / sum (v_c^2 / (n_c - 1))`` with ``v_c = s_c^2 / n_c``
    (Welch, Satterthwaite). Without any variance the error is 0 and df is NaN.

    Args:
        variances: s_c^2 of each group, divisor n - 1, [C].
        counts: n_c of each group, 2 or more, [C].
    """
    counts = np.asarray(counts)
    each = np.asarray(variances) / counts
    total = float(each.sum())
    if total == 0:
        return 0.0, math.nan
    df = 1 / float(np.sum((each / total) ** 2 / (counts - 1)))
    return math.sqrt(total) / len(each), df


def t_reach(error: float, df: float) -> float:
    """Half the length of the two-sided 95 % t interval."""
    return float(stats.t.ppf((1 + LEVEL) / 2, df)) * error


def mean_interval(groups: Sequence[Sequence[float]]) -> Interval | None:
    """The mean over groups of each group's mean paired difference, with its interval.

    Groups (pairs of networks) have seeds of their own, so their trials are independent, and each
    may scatter differently: the variance of the mean over C groups is the sum of s_c^2 / n_c over
    C^2, with Welch and Satterthwaite's degrees of freedom. Of one group it is the ordinary paired
    t interval. The groups themselves are taken as given, not as a sample of all groups.

    Args:
        groups: paired differences, [C][n_c]; empty groups are left out.
    """
    groups = [np.asarray(g, dtype=float) for g in groups if len(g)]
    if not groups:
        return None
    n = sum(map(len, groups))
    mean = float(np.mean([g.mean() for g in groups]))
    if min(map(len, groups)) < 2:
        return Interval(mean, math.nan, math.nan, math.nan, math.nan, n)
    error, df = welch([g.var(ddof=1) for g in groups], [len(g) for g in groups])
    # Equal differences may leave rounding noise as their deviation.
    if error <= 1e-12 * max(np.abs(np.concatenate(groups)).max(), 1e-300):
        return Interval(mean, mean, mean, math.nan, math.nan, n)
    reach = t_reach(error, df)
    p = float(2 * stats.t.sf(abs(mean) / error, df))
    return Interval(mean, mean - reach, mean + reach, df, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
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


def sign_test(differences: Sequence[float]) -> Signs:
    """Exact two-sided sign test: better or worse is a fair coin, ties are left out.

    p is NaN where nothing but ties is left.
    """
    differences = np.asarray(differences, dtype=float)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    n = better + worse
    p = float(stats.binomtest(better, n, 0.5).pvalue) if n else math.nan
    return Signs(better, worse, len(differences) - n, p)
