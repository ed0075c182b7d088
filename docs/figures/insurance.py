"""Draws insurance.png from the records in results/: run python docs/figures/insurance.py.

Accuracy of the insurance study's main arms in each setting, with 95 % intervals over trials.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdistiller.experiments.tables import insurance as study

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from insurance_report import Found, interval, recorded  # noqa: E402

# Colour and mark of each arm, in the order in which they stand below each other.
ARMS = {
    "ce": ("cross-entropy alone", "#6c757d", "s"),
    "kd": ("KD as configured", "#D55E00", "o"),
    study.BEST_FIXED: ("best of seven fixed weights", "#CC79A7", "D"),
    "insured": ("insured, STEP plain", "#0072B2", "^"),
    "insured_supervised": ("insured, STEP supervised", "#009E73", "v"),
}
# Accuracies so much below the best are drawn at the edge, with their number.
_SPAN = 12.0


def drawn_settings(found: Found) -> list[str]:
    """Those in which an arm with a teacher was trained."""
    return [s for s in study.SETTINGS if any(found.trials(s, a) for a in ARMS if a != "ce")]


def draw_task(axes: Axes, found: Found, title: str) -> None:
    """A row a setting, in it a mark an arm: mean accuracy in percent, and its interval."""
    settings = drawn_settings(found)
    means = {
        (s, a): np.mean(list(t.values()))
        for s in settings
        for a in ARMS
        if (t := found.trials(s, a))
    }
    top = max(means.values())
    edge = top - _SPAN
    for y, setting in enumerate(settings):
        for place, (arm, (_, colour, mark)) in enumerate(ARMS.items()):
            if (setting, arm) not in means:
                continue
            mean, at = means[setting, arm], y + 0.15 * (place - 2)
            low, high = interval(np.array(list(found.trials(setting, arm).values())))
            style = {"color": colour, "marker": mark, "markersize": 5, "capsize": 2}
            if mean < edge:
                axes.plot(edge, at, "<", color=colour, markersize=5)
                axes.text(edge + 0.3, at, f"{mean:.1f}", color=colour, va="center", fontsize=8)
            elif np.isfinite(low):
                axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], ls="none", **style)
            else:
                axes.errorbar(mean, at, ls="none", **style)
        if y:
            axes.axhline(y - 0.5, color="#d8dbe0", linewidth=0.7)
    axes.set_yticks(range(len(settings)), [study.SETTINGS[s].label for s in settings])
    axes.set(ylim=(len(settings) - 0.5, -0.5), xlim=(edge - 0.4, top + 0.8), title=title)
    axes.set_xlabel("test top-1 in %, last epoch")
    axes.spines[["top", "right"]].set_visible(False)


def draw(records: Path = ROOT / "results") -> Figure:
    """A panel a task that has results."""
    known = {task: recorded(task, records) for task in study.TASKS}
    known = {task: found for task, found in known.items() if drawn_settings(found)}
    rows = [len(drawn_settings(found)) for found in known.values()]
    size = (6.6, 0.62 * sum(rows) + 0.9 * len(rows) + 0.6)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
        for axes, (task, found) in zip(grid, known.items(), strict=True):
            draw_task(axes, found, task)
        used = [
            matplotlib.lines.Line2D([], [], color=c, marker=m, ls="none", label=name)
            for arm, (name, c, m) in ARMS.items()
            if any(found.trials(s, arm) for found in known.values() for s in study.SETTINGS)
        ]
        figure.legend(handles=used, loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})
