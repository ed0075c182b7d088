"""Test accuracy over epochs and over time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..plan import Column, Plan
from ..runs import Run, common
from .style import draw_band, epoch_axis, legend, panels, row_styles, styled

# Shorter trainings have no end that could be told from their start.
ENLARGED_FROM = 12


def accuracy_curves(plan: Plan, rule: str) -> Figure | None:
    """Two panels per column: all of training, and its end; None without a complete run."""
    columns = _with_runs(plan)
    if not columns:
        return None
    longest = max(len(run.history) for run in plan.runs if run.state == "done")
    with styled():
        figure, grid = panels([c.label for c in columns], 1 + (longest >= ENLARGED_FROM))
        styles = row_styles(plan)
        for column, own in zip(columns, grid, strict=True):
            for axes in own:
                for row in plan.rows:
                    if runs := plan.done(row, column):
                        values = common([run.curve("test_acc") for run in runs])
                        epochs = np.arange(1, values.shape[1] + 1)
                        draw_band(axes, epochs, values, styles[row.key], row.label)
                epoch_axis(axes)
            for axes in own[1:]:
                enlarge_end(axes)
        _accuracy_labels(grid)
        legend(figure, [own[0] for own in grid])
    return figure


def enlarge_end(axes: Axes) -> None:
    """Show the last quarter of the lines."""
    for line in axes.get_lines():
        line.set_markevery(max(1, len(line.get_xdata()) // 32))
    last = max(line.get_xdata()[-1] for line in axes.get_lines())
    start = last - last / 4
    axes.set_xlim(start, last + (last - start) / 30)
    drawn = map(Line2D.get_data, axes.get_lines())
    values = np.concatenate([np.asarray(y)[np.asarray(x) >= start] for x, y in drawn])
    margin = max(0.2 * float(values.max() - values.min()), 0.25)
    axes.set_ylim(values.min() - margin, values.max() + margin)


def equal_time(plan: Plan, rule: str) -> Figure | None:
    """Accuracy against time, per column, of the runs on the machine that has most of its rows.

    None where no row has a baseline with which it could be compared.
    """
    columns = [c for c in _with_runs(plan) if len({r for r in plan.rows if plan.done(r, c)}) > 1]
    if not columns or all(plan.baseline(row) is None for row in plan.rows):
        return None
    with styled():
        figure, grid = panels([column.label for column in columns])
        unit, size = _unit(plan)
        styles = row_styles(plan)
        for column, (axes,) in zip(columns, grid, strict=True):
            _draw_times(plan, column, axes, styles, size)
            axes.set_xlabel(f"training time in {unit}")
            axes.set_xlim(left=0)
        _accuracy_labels(grid)
        legend(figure, [own[0] for own in grid])
    return figure


def _draw_times(plan: Plan, column: Column, axes: Axes, styles: dict, size: float) -> None:
    groups = {row.key: plan.done(row, column) for row in plan.rows}
    machine = _commonest(groups)
    low, ends = [], []
    for row in plan.rows:
        runs = [run for run in groups[row.key] if run.machine == machine]
        if not runs:
            continue
        times = common([run.seconds for run in runs]).mean(axis=0) / size
        values = common([run.curve("test_acc") for run in runs]).mean(axis=0)
        every = max(1, len(times) // 8)
        axes.plot(times, values, label=row.label, markevery=every, **styles[row.key])
        low.append(values[len(values) // 2 :])
        if any(other.baseline == row.key for other in plan.rows):
            ends.append(times[-1])
    if ends:
        axes.axvline(min(ends), color="#50565e", linestyle=":", linewidth=1.2)
    _frame(axes, low)


def _commonest(groups: dict[str, list[Run]]) -> tuple[Any, ...]:
    """The machine on which most rows have runs; of equal ones that with most runs, the first."""
    rows: Counter = Counter()
    runs: Counter = Counter()
    for group in groups.values():
        machines = [run.machine for run in group]
        rows.update(dict.fromkeys(machines, 1))
        runs.update(machines)
    return max(rows, key=lambda machine: (rows[machine], runs[machine]))


def _with_runs(plan: Plan) -> list[Column]:
    return [c for c in plan.columns if any(plan.done(row, c) for row in plan.rows)]


def _frame(axes: Axes, second_halves: list[np.ndarray]) -> None:
    """Leave out the steep start, in which all lines coincide."""
    values = np.concatenate(second_halves)
    span = max(float(values.max() - values.min()), 0.5)
    axes.set_ylim(values.min() - 0.15 * span, values.max() + 0.15 * span)


def _accuracy_labels(grid: list[list[Axes]]) -> None:
    for axes in (axes for own in grid for axes in own):
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("test top-1 in %")


def _unit(plan: Plan) -> tuple[str, float]:
    """The unit of time that suits the longest run, and its seconds."""
    done: list[Run] = [run for run in plan.runs if run.state == "done"]
    longest = max(float(run.seconds[-1]) for run in done)
    if longest < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if longest < 18000 else ("hours", 3600.0)
