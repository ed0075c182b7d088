"""How many trials a comparison needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .statistics import LEVEL, Interval

# What grids are to tell apart, in percentage points.
HALF_WIDTH = 0.15
# Beyond, a number of trials only says that there is no end of it.
_MOST = 100_000


def half_width(interval: Interval) -> float:
    """Half the length of a confidence interval, NaN without one."""
    return (interval.high - interval.low) / 2


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float:
    """Root of the mean variance (divisor n - 1) over groups of two values or more each."""
    return float(np.sqrt(np.mean([np.var(g, ddof=1) for g in groups])))


def expected_half_width(groups: Sequence[Sequence[float]], n: int) -> float:
    """Half-width of the interval of :func:`~.statistics.mean_interval` with n trials a group.

    The deviations s_c of the C groups are taken from the values at hand:
    ``t(0.975; df) sqrt(sum s_c^2 / n) / C``, ``df = (n - 1) (sum s_c^2)^2 / sum s_c^4``.

    Args:
        groups: paired differences, [C][n_c], two or more in each.
        n: trials in each group, 2 or more.
    """
    variances = np.array([np.var(g, ddof=1) for g in groups])
    if variances.sum() == 0:
        return 0.0
    df = (n - 1) * variances.sum() ** 2 / (variances**2).sum()
    error = np.sqrt(variances.sum() / n) / len(groups)
    return float(stats.t.ppf((1 + LEVEL) / 2, df) * error)


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
