"""Draws geometry.png: run python docs/figures/geometry.py from the repository's root."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from mdistiller.weighting import CrossBatchWeighting, gramian

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Two gradients in the plane of the paper, the distillation gradient the longer one, and a reference
# that mostly points out of it, as in training, where the cosines to it are small.
ROWS = torch.tensor([[0.1, 1.0, 0.0], [1.5, 0.35, 0.0], [0.27, 0.62, 1.6]], dtype=torch.float64)
NAMES = (r"$g_{ce}$", r"$g_{kd}$", r"$G$")
READINGS = ("align", "printed", "orthogonal", "cone", "regression")
STEPS = ("paper", "plain", "supervised")
# Colours that colour-blind readers tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
GRAY = "#777777"


def arrow(axes, tip, colour: str, label: str, at=None, **style) -> None:
    """From the origin to the first two of ``tip``, named there or beside ``at``."""
    x, y = (float(v) for v in tip[:2])
    axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, **style})
    axes.annotate(label, at or (x, y), color=colour, xytext=(4, 2), textcoords="offset points")


def direction(reading: str) -> torch.Tensor:
    """Unit vector of g_w."""
    w = CrossBatchWeighting(reading, step="plain")(gramian(ROWS))
    g = w.ce * ROWS[0] + w.kd * ROWS[1]
    return g / g.norm()


def draw_readings(axes) -> None:
    """The update of every reading for the same three gradients."""
    units = ROWS / ROWS.norm(dim=1, keepdim=True)
    angles = torch.linspace(0, torch.pi / 2, 100)
    axes.plot(angles.cos(), angles.sin(), color=GRAY, linewidth=0.6)
    for unit, name in zip(units[:2], NAMES, strict=False):
        arrow(axes, unit, "black", name, linewidth=1.6)
    arrow(axes, units[2], GRAY, "$G$, its part in this plane", linewidth=1.6, linestyle="--")
    directions = {reading: direction(reading) for reading in READINGS}
    # On one step's Gramian two readings can agree.
    groups: dict[tuple[float, ...], list[str]] = {}
    for reading, g in directions.items():
        groups.setdefault(tuple(round(x, 6) for x in g.tolist()), []).append(reading)
    for (tip, names), colour in zip(groups.items(), COLOURS, strict=False):
        beyond = 1.09 if "orthogonal" in names else 1.0
        at = (tip[0] * beyond, tip[1] * beyond - 0.1 * (beyond > 1))
        arrow(axes, tip, colour, ", ".join(names), at, linewidth=1.2)
    axes.set_title("direction of $g_w$ by READING (unit gradients)", fontsize=10)
    axes.set_xlim(-0.05, 1.4)
    axes.set_ylim(-0.05, 1.15)


def draw_steps(axes) -> None:
    for row, name in zip(ROWS[:2], NAMES, strict=False):
        arrow(axes, row, "black", name, linewidth=1.6)
    total = ROWS[0] + ROWS[1]
    arrow(axes, total, GRAY, "$g_{ce} + g_{kd}$", linewidth=1.2, linestyle="--")
    for step, colour in zip(STEPS, COLOURS, strict=False):
        w = CrossBatchWeighting("align", step=step)(gramian(ROWS))
        g = w.ce * ROWS[0] + w.kd * ROWS[1]
        arrow(axes, g, colour, step, linewidth=1.4)
    axes.set_title("update $g$ by STEP (READING align, ALPHA 1)", fontsize=10)
    axes.set_xlim(-0.1, 2.3)
    axes.set_ylim(-0.1, 1.9)


def main() -> None:
    figure, both = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    draw_readings(both[0])
    draw_steps(both[1])
    for axes in both:
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    # Without a date, so that the same picture is the same file.
    target = Path(__file__).with_name("geometry.png")
    figure.savefig(target, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
