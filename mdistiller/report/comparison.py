"""A method against its baseline: paired by trial, at equal epochs and at equal time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .plan import Column, Plan, Row
from .runs import Run
from .statistics import Interval, Signs, mean_interval, sign_test

RULES = ("last", "best")
Measure = Callable[[Run, Run], float]


def pairs(plan: Plan, row: Row, column: Column) -> list[tuple[Run, Run]]:
    """(run, baseline's run) of every trial that both rows have completed with the same seed."""
    baseline = plan.baseline(row)
    others = {run.trial: run for run in plan.done(baseline, column)} if baseline else {}
    return [
        (run, others[run.trial])
        for run in plan.done(row, column)
        if run.trial in others and run.seed == others[run.trial].seed
    ]


@dataclass(frozen=True)
class Comparison:
    """Paired differences (row minus baseline) of one row over all columns.

    Attributes:
        differences: percentage points by column key, [trials]; columns without pairs are left out.
        intervals: the t interval of each of these columns.
        pooled: the interval of the mean over the columns.
        signs: exact sign test over all trials of all columns.
    """

    row: Row
    baseline: Row
    differences: dict[str, np.ndarray]
    intervals: dict[str, Interval]
    pooled: Interval
    signs: Signs

    @property
    def improved(self) -> int:
        """In how many columns the mean difference is positive."""
        return sum(interval.mean > 0 for interval in self.intervals.values())


def compare_rows(plan: Plan, measure: Measure) -> list[Comparison]:
    """Every row that names a baseline and has at least one pair of runs.

    Args:
        measure: the difference of a run and its baseline's run, NaN to leave the pair out.
    """
    found = []
    for row in plan.rows:
        baseline = plan.baseline(row)
        differences = {}
        for column in plan.columns if baseline else ():
            values = np.array([measure(*pair) for pair in pairs(plan, row, column)])
            values = values[~np.isnan(values)] if len(values) else values
            if len(values):
                differences[column.key] = values
        if not differences:
            continue
        intervals = {key: mean_interval([values]) for key, values in differences.items()}
        pooled = mean_interval(list(differences.values()))
        signs = sign_test(np.concatenate(list(differences.values())))
        found.append(Comparison(row, baseline, differences, intervals, pooled, signs))
    return found


def at_equal_epochs(rule: str) -> Measure:
    """Difference of the accuracies by the selection rule, in percentage points."""
    return lambda run, other: run.accuracy(rule) - other.accuracy(rule)


def same_machine(run: Run, other: Run) -> bool:
    """Whether the times of two runs may be compared."""
    return run.machine == other.machine


def _same_effort(run: Run, other: Run) -> bool:
    """Whether two runs have the same schedule and times that may be compared."""
    return same_machine(run, other) and len(run.history) == len(other.history)


def accuracy_within(run: Run, seconds: float, rule: str) -> tuple[float, int]:
    """Test top-1 in percent, and the epochs completed, when ``seconds`` of training are over.

    Accuracy of the last or of the best completed epoch; (NaN, 0) where none was complete. The
    time of validation does not count.
    """
    # The faster run's own last epoch must be within its own sum despite rounding.
    done = int(np.searchsorted(run.seconds, seconds * (1 + 1e-9), side="right"))
    if done == 0:
        return np.nan, 0
    reached = run.curve("test_acc")[:done]
    return float(reached[-1] if rule == "last" else reached.max()), done


def budget(run: Run, other: Run) -> float:
    """The training seconds of the faster of two runs."""
    return float(min(run.seconds[-1], other.seconds[-1]))


def at_equal_time(rule: str) -> Measure:
    """Difference of what two runs had reached when the faster of them ended.

    NaN where the runs were on different machines or differ in their epochs.
    """

    def measure(run: Run, other: Run) -> float:
        if not _same_effort(run, other):
            return np.nan
        seconds = budget(run, other)
        return accuracy_within(run, seconds, rule)[0] - accuracy_within(other, seconds, rule)[0]

    return measure


@dataclass(frozen=True)
class Cost:
    """What a row costs beside its baseline in one column, measured in the same runs.

    Attributes:
        factor: ratio of the medians of the seconds per epoch.
        seconds: medians of the seconds per epoch, of the row and of the baseline.
        reached: mean share of its epochs that the slower run had completed when the faster
            one ended.
        n: pairs of runs on equal machines with equally many epochs.
    """

    row: Row
    column: Column
    factor: float
    seconds: tuple[float, float]
    reached: float
    n: int


def costs(plan: Plan) -> Iterator[Cost]:
    """For every row with a baseline and every column with runs of both that can be compared."""
    for row in plan.rows:
        for column in plan.columns:
            matched = [pair for pair in pairs(plan, row, column) if _same_effort(*pair)]
            if not matched:
                continue
            mine, theirs = (
                float(np.median(np.concatenate([run.curve("seconds") for run in side])))
                for side in zip(*matched, strict=True)
            )
            if theirs == 0:
                continue
            reached = [
                accuracy_within(r, budget(*pair), "last")[1] / len(r.history)
                for pair in matched
                for r in [max(pair, key=lambda run: run.seconds[-1])]
            ]
            share = float(np.mean(reached))
            yield Cost(row, column, mine / theirs, (mine, theirs), share, len(matched))
