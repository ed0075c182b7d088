"""Rows against others: paired by trial, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mdistiller.experiments.tables import Column
from mdistiller.experiments.tables.layouts import Row

from .frame import curve
from .results import Results
from .statistics import Interval, Signs, mean_interval, sign_test


@dataclass(frozen=True)
class Comparison:
    """Paired differences (row minus other) over all columns.

    Attributes:
        differences: percentage points by column key, [trials]; columns without pairs are left out.
        intervals: the t interval of each of these columns.
        pooled: the interval of the mean over the columns.
        signs: exact sign test over all trials of all columns.
    """

    row: Row
    other: Row
    differences: dict[str, np.ndarray]
    intervals: dict[str, Interval]
    pooled: Interval
    signs: Signs

    @property
    def improved(self) -> int:
        """In how many columns the mean difference is positive."""
        return sum(interval.mean > 0 for interval in self.intervals.values())


def compare(results: Results, pairs: Iterable[tuple[Row, Row]], rule: str) -> list[Comparison]:
    """Differences of accuracies of each pair of rows that has trials of both.

    Args:
        rule: accuracy of the "last" or of the "best" epoch.
    """
    found = []
    for row, other in pairs:
        both = results.paired(row.key, other.key)
        gaps = both[f"{rule}_top1"] - both[f"{rule}_top1_2"]
        # In the order of the columns, as the runs are.
        differences = {k: g.to_numpy() for k, g in gaps.groupby(both["column"], sort=False)}
        pooled = mean_interval(list(differences.values()))
        if pooled is not None:
            each = {key: mean_interval([values]) for key, values in differences.items()}
            intervals = {key: interval for key, interval in each.items() if interval is not None}
            signs = sign_test(gaps.to_numpy())
            found.append(Comparison(row, other, differences, intervals, pooled, signs))
    return found


@dataclass(frozen=True)
class Cost:
    """What a row costs beside its baseline in one column, measured in the same runs.

    Attributes:
        factor: ratio of the medians of the seconds per epoch.
        seconds: medians of the seconds per epoch, of the row and of the baseline.
        n: pairs of runs on equal machines with equally many epochs.
    """

    row: Row
    column: Column
    factor: float
    seconds: tuple[float, float]
    n: int


def costs(results: Results) -> Iterator[Cost]:
    """For every row with a baseline and every column with runs of both that can be compared."""
    columns = {column.key: column for column in results.columns}
    for row, other in results.compared:
        both = results.paired(row.key, other.key)
        alike = both[(both["machine"] == both["machine_2"]) & (both["epochs"] == both["epochs_2"])]
        for key, matched in alike.groupby("column", sort=False):
            mine, theirs = (
                float(np.median(np.concatenate([curve(h, "seconds") for h in matched[side]])))
                for side in ("history", "history_2")
            )
            if theirs:
                yield Cost(row, columns[key], mine / theirs, (mine, theirs), len(matched))
