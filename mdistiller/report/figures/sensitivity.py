"""Accuracy against the cross-entropy weight (Figure 2)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdistiller.experiments.tables import Column

from ..results import Results
from .style import GREY, line_style, styled

# The weight at which a method's own weights apply.
EQUAL = 0.5
_SIZE = (6.6, 4.2)


def sensitivity_relative(results: Results, rule: str) -> Figure | None:
    """Paired differences to equal weights; None without runs there."""
    lines = []
    for column in _lines(results):
        points = accuracies(results, column, rule)
        equal = points.get(EQUAL, {})
        differences = {
            x: [value - equal[trial] for trial, value in trials.items() if trial in equal]
            for x, trials in points.items()
        }
        lines.append((column.label, {x: v for x, v in differences.items() if v}))
    label = f"top-1 minus that at {EQUAL} : {1 - EQUAL}, percentage points"
    figure, axes = _draw(lines, label)
    if axes is not None:
        axes.axhline(0, color=GREY, linewidth=0.9)
    return figure


def sensitivity_absolute(results: Results, rule: str) -> Figure | None:
    """Accuracies, with the factors on the method's own weights on an axis above.

    KD has no such axis: its weights are the importances themselves.
    """
    lines = [
        (column.label, {x: list(v.values()) for x, v in accuracies(results, column, rule).items()})
        for column in _lines(results)
    ]
    figure, axes = _draw(lines, "test top-1 in %")
    if axes is None or any(row.method == "KD" for row in results.rows if row.x is not None):
        return figure
    with styled():
        upper = axes.secondary_xaxis("top")
        upper.spines["top"].set_visible(True)
        places = axes.get_xticks()
        names = [f"{x / EQUAL:.1f} : {(1 - x) / EQUAL:.1f}" for x in places]
        upper.set_xticks(places, names, fontsize=7.5)
        upper.set_xlabel("factors on the method's own weights, ce : kd")
    return figure


def accuracies(results: Results, column: Column, rule: str) -> dict[float, dict[int, float]]:
    """Top-1 in percent of every trial at every weight of cross-entropy."""
    weighted = [(row.x, row) for row in results.rows if row.x is not None]
    return {
        x: dict(zip(runs["trial"], runs[f"{rule}_top1"], strict=True))
        for x, row in sorted(weighted, key=lambda pair: pair[0])
        if len(runs := results.cell(row.key, column.key))
    }


def _lines(results: Results) -> tuple[Column, ...]:
    return results.columns if any(row.x is not None for row in results.rows) else ()


def _draw(
    lines: list[tuple[str, dict[float, list[float]]]], label: str
) -> tuple[Figure, Axes] | tuple[None, None]:
    """Mean and sample deviation at each weight; nothing if no line has two of them."""
    if not any(len(points) > 1 for _, points in lines):
        return None, None
    with styled():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        places = sorted({x for _, points in lines for x in points})
        for number, (name, points) in enumerate(lines):
            if not points:
                continue
            # Side by side, or the bars of several lines would cover each other.
            shift = 0.006 * (number - (len(lines) - 1) / 2)
            x = np.array(list(points)) + shift
            mean = [np.mean(v) for v in points.values()]
            bars = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in points.values()]
            style = line_style(number)
            axes.errorbar(x, mean, yerr=bars, label=name, capsize=3, elinewidth=1, **style)
        axes.set_xticks(places, [f"{x:.1f} : {1 - x:.1f}" for x in places], fontsize=8)
        axes.set(xlabel="weights of the losses, ce : kd", ylabel=label)
        axes.legend(handlelength=3)
    return figure, axes
