"""Accuracy, weights and cosines over epochs, and accuracy over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..frame import common, curve
from ..results import Results
from ..tables import COSINES, WEIGHTS
from .style import (
    GREY,
    draw_band,
    integer_ticks,
    is_first_column,
    legend,
    panels,
    row_styles,
    styled,
    x_of,
)

ACCURACY = "test top-1 in %"
# Shorter trainings have no end that could be told from their start.
ENLARGED_FROM = 12
# Where the largest weight is more than this many times the smallest, a linear axis hides one.
_WIDE = 20
# Bands of more lines than that hide the lines.
_BANDS = 8


def accuracy_curves(results: Results, rule: str) -> Figure | None:
    """Two panels per column: all of training, and its end; None without a complete run."""
    if results.done.empty:
        return None
    ends = results.done["epochs"].max() >= ENLARGED_FROM
    quantities = [("test_acc", ACCURACY)] * (1 + ends)
    figure, grid = _over_epochs(results, quantities, bands=True)
    for own in grid:
        for axes in own[1:]:
            _enlarge_end(axes)
    return figure


def weights(results: Results, rule: str) -> Figure | None:
    """For every column the weight of each loss, a line per row whose weights change."""
    figure, grid = _over_epochs(results, WEIGHTS)
    for axes in (axes for own in grid for axes in own):
        _scale(axes)
    return figure


def cosines(results: Results, rule: str) -> Figure | None:
    """For every column the cosines and the conflicts, a line per row that logged them."""
    return _over_epochs(results, COSINES)[0]


def _over_epochs(
    results: Results, quantities: Sequence[tuple[str, str]], bands: bool = False
) -> tuple[Figure | None, list[list[Axes]]]:
    """A block of panels per column, one for each quantity that any run logged.

    Args:
        bands: also where there are many lines.
    """
    found = {
        (row.key, column.key, key): values
        for row in results.rows
        for column in results.columns
        for key, _ in dict(quantities).items()
        if (values := results.curves(row.key, column.key, key)) is not None
    }
    if not found:
        return None, []
    columns = [c for c in results.columns if any(key[1] == c.key for key in found)]
    quantities = [q for q in quantities if any(key[2] == q[0] for key in found)]
    styles = row_styles(results)
    crowded = not bands and len({key[0] for key in found}) > _BANDS
    with styled():
        figure, grid = panels([column.label for column in columns], len(quantities))
        for column, own in zip(columns, grid, strict=True):
            for axes, (key, label) in zip(own, quantities, strict=True):
                for row in results.rows:
                    values = found.get((row.key, column.key, key))
                    if values is not None:
                        epochs = np.arange(1, values.shape[1] + 1)
                        shown = values.mean(axis=0, keepdims=True) if crowded else values
                        draw_band(axes, epochs, shown, styles[row.key], row.label)
                if is_first_column(axes):
                    axes.set_ylabel(label)
                if key == "conflict":
                    axes.set_ylim(bottom=0)
                integer_ticks(axes)
                if bands or axes is own[-1]:
                    axes.set_xlabel("epoch")
        legend(figure, [axes for own in grid for axes in own])
    return figure, grid


def _enlarge_end(axes: Axes) -> None:
    """Show the last quarter of the lines."""
    for line in axes.get_lines():
        line.set_markevery(max(1, len(x_of(line)) // 32))
    last = max(float(x_of(line)[-1]) for line in axes.get_lines())
    start = last - last / 4
    axes.set_xlim(start, last + (last - start) / 30)
    values = np.concatenate(
        [np.asarray(line.get_ydata())[x_of(line) >= start] for line in axes.get_lines()]
    )
    margin = max(0.2 * float(values.max() - values.min()), 0.25)
    axes.set_ylim(values.min() - margin, values.max() + margin)


def _scale(axes: Axes) -> None:
    """A logarithmic axis where the weights are far apart, linear near zero if some are not
    positive."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    values = np.concatenate(lines) if lines else np.empty(0)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) == 0 or sizes.max() <= _WIDE * np.median(sizes):
        return
    if (values > 0).all():
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=float(np.median(sizes)))


# ---- over time -------------------------------------------------------------------------------


def equal_time(results: Results, rule: str) -> Figure | None:
    """Accuracy against time, per column, of the runs on the machine that has most of its rows.

    None where no row has a baseline with which it could be compared.
    """
    rows = results.done.groupby("column")["row"].nunique()
    columns = [c for c in results.columns if rows.get(c.key, 0) > 1]
    if not columns or not results.compared:
        return None
    longest = max(_seconds(history)[-1] for history in results.done["history"])
    unit, size = next(u for u in _UNITS if longest < u[2])[:2]
    with styled():
        figure, grid = panels([column.label for column in columns])
        for column, (axes,) in zip(columns, grid, strict=True):
            own = results.done[results.done["column"] == column.key]
            _draw_times(results, own, axes, size)
            axes.set_xlabel(f"training time in {unit}")
            axes.set_xlim(left=0)
            if is_first_column(axes):
                axes.set_ylabel(ACCURACY)
        legend(figure, [own[0] for own in grid])
    return figure


# With the seconds below which they suit the longest run.
_UNITS = (("seconds", 1.0, 300), ("minutes", 60.0, 18000), ("hours", 3600.0, np.inf))


def _seconds(history: Sequence) -> np.ndarray:
    """Training seconds until the end of each epoch [epochs], validation left out."""
    return np.nancumsum(curve(history, "seconds"))


def _draw_times(results: Results, runs: pd.DataFrame, axes: Axes, size: float) -> None:
    machine = _commonest(runs)
    styles, low, ends = row_styles(results), [], []
    baselines = {row.baseline for row in results.rows}
    for row in results.rows:
        own = runs[(runs["row"] == row.key) & (runs["machine"] == machine)]["history"]
        if own.empty:
            continue
        times = common(list(map(_seconds, own))).mean(axis=0) / size
        values = common([curve(history, "test_acc") for history in own]).mean(axis=0)
        every = max(1, len(times) // 8)
        axes.plot(times, values, label=row.label, markevery=every, **styles[row.key])
        low.append(values[len(values) // 2 :])
        if row.key in baselines:
            ends.append(times[-1])
    if ends:
        axes.axvline(min(ends), color=GREY, linestyle=":", linewidth=1.2)
    # Without the steep start, in which all lines coincide.
    values = np.concatenate(low)
    span = max(float(np.nanmax(values) - np.nanmin(values)), 0.5)
    axes.set_ylim(np.nanmin(values) - 0.15 * span, np.nanmax(values) + 0.15 * span)


def _commonest(runs: pd.DataFrame) -> str:
    """The machine on which most rows have runs; of equal ones that with most runs, the first."""
    rows: Counter = Counter(runs.drop_duplicates(["row", "machine"])["machine"])
    count = Counter(runs["machine"])
    return max(rows, key=lambda machine: (rows[machine], count[machine]))
