"""How many trials a comparison needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .statistics import Interval, t_reach, welch

# What grids are to tell apart, in percentage points.
HALF_WIDTH = 0.15
# Beyond, a number of trials only says that there is no end of it.
_MOST = 100_000
_MOST_ADDED = 1_000


def half_width(interval: Interval) -> float:
    """Half the length of a confidence interval, NaN without one."""
    return (interval.high - interval.low) / 2


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float:
    """Root of the mean variance (divisor n - 1) over groups of two values or more each."""
    return float(np.sqrt(np.mean([np.var(g, ddof=1) for g in groups])))


def expected_half_width(groups: Sequence[Sequence[float]], counts: int | Sequence[int]) -> float:
    """Half-width of the interval of :func:`~.statistics.mean_interval` with other trial counts.

    The deviations of the groups are taken from the values at hand, the rest is
    :func:`~.statistics.welch`.

    Args:
        groups: paired differences, [C][n at hand], two or more in each.
        counts: trials n_c of each group, [C], or of every group; 2 or more.
    """
    variances = [np.var(g, ddof=1) for g in groups]
    error, df = welch(variances, np.broadcast_to(np.asarray(counts), len(groups)))
    return t_reach(error, df) if error else 0.0


def trials_needed(groups: Sequence[Sequence[float]], width: float = HALF_WIDTH) -> int | None:
    """The smallest number of trials a group with :func:`expected_half_width` <= ``width``.

    Found by trying, since t itself depends on n.

    Returns:
        None if a group has fewer than two values, or if it is beyond all reason.
    """
    if not groups or min(map(len, groups)) < 2:
        return None
    low, high = 1, 2
    # The half-width falls as n grows: double, then halve the gap.
    while expected_half_width(groups, high) > width:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if expected_half_width(groups, middle) > width:
            low = middle
        else:
            high = middle
    return high


def trials_to_add(
    groups: Sequence[Sequence[float]], width: float = HALF_WIDTH
) -> tuple[int, ...] | None:
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
