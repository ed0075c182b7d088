"""Weights, cosines and conflicts over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..dynamics import COSINES, WEIGHTS, logged
from ..plan import Plan
from .style import draw_band, epoch_axis, integer_ticks, legend, panels, row_styles, styled

# Where the largest weight is more than this many times the smallest, a linear axis hides one.
_WIDE = 20
# Bands of more lines than that hide the lines.
_BANDS = 8


def weights(plan: Plan, rule: str) -> Figure | None:
    """For every column the weight of each loss, a line per row whose weights change."""
    figure = _draw(plan, WEIGHTS)
    if figure is not None:
        for axes in figure.axes:
            _scale(axes)
    return figure


def cosines(plan: Plan, rule: str) -> Figure | None:
    """For every column the cosines and the conflicts, a line per row that logged them."""
    return _draw(plan, COSINES)


def _draw(plan: Plan, quantities: Sequence[tuple[str, str]]) -> Figure | None:
    """A block of panels per column, one for each quantity that any run logged."""
    found = {
        (row.key, column.key, key): values
        for row in plan.rows
        for column in plan.columns
        for key, _ in quantities
        if (values := logged(plan, row, column, key)) is not None
    }
    columns = [c for c in plan.columns if any(key[1] == c.key for key in found)]
    quantities = [q for q in quantities if any(key[2] == q[0] for key in found)]
    if not found:
        return None
    styles = row_styles(plan)
    crowded = len({key[0] for key in found}) > _BANDS
    with styled():
        figure, grid = panels([column.label for column in columns], len(quantities))
        for column, own in zip(columns, grid, strict=True):
            for axes, (key, label) in zip(own, quantities, strict=True):
                for row in plan.rows:
                    values = found.get((row.key, column.key, key))
                    if values is not None:
                        epochs = np.arange(1, values.shape[1] + 1)
                        shown = values.mean(axis=0, keepdims=True) if crowded else values
                        draw_band(axes, epochs, shown, styles[row.key], row.label)
                if axes.get_subplotspec().is_first_col():
                    axes.set_ylabel(label)
                if key == "conflict":
                    axes.set_ylim(bottom=0)
                integer_ticks(axes)
            epoch_axis(own[-1])
        legend(figure, [axes for own in grid for axes in own])
    return figure


def _scale(axes: Axes) -> None:
    """A logarithmic axis where the weights are far apart, linear near zero if some are not
    positive."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    if not lines:
        return
    values = np.concatenate(lines)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) == 0 or sizes.max() <= _WIDE * np.median(sizes):
        return
    if (values > 0).all():
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=float(np.median(sizes)))
