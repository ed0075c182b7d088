"""Accuracies and differences as points with bars."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..comparison import at_equal_epochs, compare_rows
from ..plan import Plan
from .style import legend, line_style, row_styles, styled

_GREY = "#50565e"


def preference(plan: Plan, rule: str) -> Figure | None:
    """A group per column, a point per row (Figure 4); None for other kinds of tables."""
    if plan.kind != "preference" or not any(r.state == "done" for r in plan.runs):
        return None
    with styled():
        figure = Figure(
            figsize=(max(5.0, 2.2 * len(plan.columns) + 1.5), 3.8), layout="constrained"
        )
        axes = figure.subplots()
        step = 0.6 / max(len(plan.rows), 1)
        for number, row in enumerate(plan.rows):
            style = line_style(number)
            style["linestyle"] = "none"
            for place, column in enumerate(plan.columns):
                values = np.array([run.accuracy(rule) for run in plan.done(row, column)])
                if not len(values):
                    continue
                x = place + step * (number - (len(plan.rows) - 1) / 2)
                bar = values.std(ddof=1) if len(values) > 1 else 0.0
                options = {"capsize": 4, "markersize": 7, "label": row.label, **style}
                axes.errorbar(x, values.mean(), yerr=bar, **options)
                axes.plot([x + 0.05] * len(values), values, ".", color=_GREY, markersize=4)
        axes.set_xticks(range(len(plan.columns)), [c.label for c in plan.columns])
        axes.set(xlim=(-0.5, len(plan.columns) - 0.5), ylabel=f"test top-1 in %, {rule} epoch")
        axes.grid(axis="x", visible=False)
        legend(figure, [axes])
    return figure


def differences(plan: Plan, rule: str) -> Figure | None:
    """A panel per row with a baseline: each column's difference, and their mean below."""
    found = compare_rows(plan, at_equal_epochs(rule))
    if not found:
        return None
    with styled():
        across = min(len(found), 5)
        down = -(-len(found) // across)
        height = 0.26 * (len(plan.columns) + 1) + 1.1
        figure = Figure(figsize=(max(2.3 * across + 1.6, 6), height * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        styles = row_styles(plan)
        names = [c.label for c in plan.columns] + [f"mean over {plan.column_word}s"]
        for axes, comparison in zip(grid.flat, found, strict=False):
            intervals = [comparison.intervals.get(c.key) for c in plan.columns]
            colour = styles[comparison.row.key]["color"]
            for y, interval in enumerate([*intervals, comparison.pooled]):
                if interval is not None:
                    marker = "D" if y == len(intervals) else "o"
                    _draw_interval(axes, y, interval, colour, marker)
            axes.axvline(0, color=_GREY, linewidth=0.9)
            axes.axhline(len(intervals) - 0.5, color="#b6bac0", linewidth=0.8)
            title = f"{comparison.row.label}\nminus {comparison.baseline.label}"
            axes.set_title(title)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xlabel("percentage points")
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
    return figure


def _draw_interval(axes, y: int, interval, colour: str, marker: str) -> None:
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
    )
