"""Accuracies and differences as points with bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import numbers
from ..comparison import Comparison, compare
from ..results import Results
from ..statistics import Interval
from .style import GREY, legend, line_style, row_styles, styled

# Times the median reach of the panels, beyond which one has a scale of its own.
_FAR = 4
# Panels beside each other: more would be too small to read in a column of text.
_ACROSS = 2
# More rows than that have no panel each.
_MANY = 10


def preference(results: Results, rule: str) -> Figure | None:
    """A panel per column, a point per row (Figure 4); None for other kinds of tables."""
    if results.kind != "preference" or results.done.empty:
        return None
    with styled():
        width = max(5.0, 2.4 * len(results.columns) + 1.0)
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        grid = figure.subplots(1, len(results.columns), squeeze=False)[0]
        for axes, column in zip(grid, results.columns, strict=True):
            for x, row in enumerate(results.rows):
                values = results.top1(row.key, column.key, rule)
                if len(values):
                    _draw_cell(axes, x, values, row.label)
            axes.set_title(column.label)
            axes.set(xlim=(-0.6, len(results.rows) - 0.4), xticks=[])
            axes.grid(axis="x", visible=False)
        grid[0].set_ylabel(f"test top-1 in %, {rule} epoch")
        legend(figure, grid)
    return figure


def _draw_cell(axes: Axes, x: int, values: np.ndarray, label: str) -> None:
    """Mean and sample deviation of the trials, and the trials beside them."""
    style = {**line_style(x), "linestyle": "none", "capsize": 4, "markersize": 7}
    bar = values.std(ddof=1) if len(values) > 1 else 0.0
    axes.errorbar(x, values.mean(), yerr=bar, label=label, **style)
    axes.plot([x + 0.18] * len(values), values, ".", color=GREY, markersize=4)


def differences(results: Results, rule: str) -> Figure | None:
    """A panel per row with a baseline: each column's difference, and the mean of several below.

    Of many rows, or one column, a panel per column, and a line in it per row.
    """
    found = compare(results, results.compared, rule)
    if not found:
        return None
    if len(found) > _MANY or len(results.columns) == 1:
        return _differences_of_many(results, found)
    with styled():
        across = min(len(found), _ACROSS)
        down = -(-len(found) // across)
        # Of one column the mean over columns is that column's.
        lines = len(results.columns) + (len(results.columns) > 1)
        height = 0.26 * lines + 1.1
        figure = Figure(figsize=(max(2.3 * across + 1.6, 6), height * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        styles = row_styles(results)
        names = [*(c.label for c in results.columns), f"mean over {results.column_word}s"][:lines]
        for axes, comparison in zip(grid.flat, found, strict=False):
            intervals = [comparison.intervals.get(c.key) for c in results.columns]
            colour = styles[comparison.row.key]["color"]
            for y, interval in enumerate([*intervals, comparison.pooled][:lines]):
                if interval is not None:
                    marker = "D" if y == len(intervals) else "o"
                    _draw_interval(axes, y, interval, colour, marker, names[y])
            axes.axvline(0, color=GREY, linewidth=0.9)
            if lines > len(intervals):
                axes.axhline(len(intervals) - 0.5, color="#b6bac0", linewidth=0.8)
            title = f"{comparison.row.label}\nminus {comparison.other.label}"
            axes.set_title(title)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlabel("percentage points")
        _share_scale(list(grid.flat[: len(found)]))
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
    return figure


def _share_scale(panels: Sequence[Axes]) -> None:
    """One scale for all panels but those whose differences would flatten the others'."""
    reach = np.array([np.abs(axes.get_xlim()).max() for axes in panels])
    usual = reach <= _FAR * np.median(reach)
    alike = [axes for axes, one in zip(panels, usual, strict=True) if one]
    low, high = (pick(axes.get_xlim()[i] for axes in alike) for i, pick in enumerate((min, max)))
    for axes in alike:
        axes.set_xlim(low, high)
    for axes in (axes for axes, one in zip(panels, usual, strict=True) if not one):
        axes.set_xlabel("percentage points\n(a scale of its own)")


def _differences_of_many(results: Results, found: list[Comparison]) -> Figure:
    columns = [(c.label, [one.intervals.get(c.key) for one in found]) for c in results.columns]
    if len(columns) > 1:
        columns.append((f"mean over {results.column_word}s", [one.pooled for one in found]))
    with styled():
        size = 2.6 * len(columns) + 3.2, 0.22 * len(found) + 1.1
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0]
        styles = row_styles(results)
        names = [f"{one.row.label} minus {one.other.label}" for one in found]
        for axes, (title, intervals) in zip(grid, columns, strict=True):
            for y, (one, interval) in enumerate(zip(found, intervals, strict=True)):
                if interval is not None:
                    marker = "o" if axes is not grid[-1] or len(grid) == 1 else "D"
                    colour = styles[one.row.key]["color"]
                    _draw_interval(axes, y, interval, colour, marker, names[y])
            axes.axvline(0, color=GREY, linewidth=0.9)
            axes.set_title(title)
            axes.set_xlabel("percentage points")
        grid[0].set_yticks(range(len(names)), names)
        grid[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _draw_interval(
    axes: Axes, y: int, interval: Interval, colour: str, marker: str, name: str
) -> None:
    clear = interval.low > 0 or interval.high < 0
    reach = None if np.isnan(interval.low) else [[interval.mean - interval.low]] * 2
    axes.errorbar(
        interval.mean,
        y,
        xerr=reach,
        color=colour,
        marker=marker,
        markerfacecolor=colour if clear else "white",
        capsize=3,
        elinewidth=1.2,
        label=f"{name}: {numbers.fixed(interval.mean, sign=True)} {numbers.bounds(interval)}",
    )
