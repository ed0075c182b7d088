"""Draws readings.png: run python docs/figures/readings.py from the repository's root.

The printed update as a bisector, the cone, and the regression; every point is computed by the
product's own functions.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from mdistiller.weighting import CrossBatchWeighting, gramian

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Colours that colour-blind readers tell apart (Okabe and Ito).
CE, KD, REF, RESULT, GRAY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
# Unit gradients of cross-entropy and distillation in the plane that they span.
GRADIENTS = torch.tensor([[0.10, 0.995], [0.94, 0.342]], dtype=torch.float64)


def at(degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angle.cos(), angle.sin()))


def direction(reading: str, reference: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Unit vector of g_w for two gradients and a reference."""
    w = CrossBatchWeighting(reading, step="plain")(gramian(torch.stack((*rows, reference))))
    g = w.ce * rows[0] + w.kd * rows[1]
    return g / g.norm()


def arrow(axes, tip, colour: str, label: str = "", shift=(3, 3), **style) -> None:
    x, y = (float(v) for v in tip)
    shape = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, **style}
    axes.annotate("", (x, y), (0, 0), arrowprops=shape)
    axes.annotate(label, (x, y), color=colour, xytext=shift, textcoords="offset points")


def gradients(axes) -> None:
    angles = torch.linspace(-0.35, torch.pi / 2 + 0.35, 100)
    axes.plot(angles.cos(), angles.sin(), color=GRAY, linewidth=0.6)
    edges = torch.stack((GRADIENTS[0], torch.zeros(2), GRADIENTS[1]))
    axes.fill(edges[:, 0], edges[:, 1], color=GRAY, alpha=0.12, linewidth=0)
    arrow(axes, GRADIENTS[0], CE, r"$\hat g_{ce}$", (-16, 4), linewidth=2)
    arrow(axes, GRADIENTS[1], KD, r"$\hat g_{kd}$", linewidth=2)


def draw_bisector(axes) -> None:
    """Three references, one update."""
    gradients(axes)
    tips = []
    for degrees in (-10.0, 30.0, 100.0):
        arrow(axes, at(degrees), REF, r"$\hat G$", linewidth=1.2, linestyle="--")
        tips.append(direction("printed", at(degrees), GRADIENTS))
    assert all(torch.allclose(tip, tips[0]) for tip in tips)
    arrow(axes, 0.97 * tips[0], RESULT, "for every $G$", (-8, -40), linewidth=2)
    axes.set_title("printed: the bisector, whatever $G$ is", fontsize=10)


def draw_cone(axes) -> None:
    """The nearest direction of the cone, for a reference inside and one outside."""
    gradients(axes)
    for degrees in (-10.0, 38.0):
        reference = at(degrees)
        found = direction("cone", reference, GRADIENTS)
        arrow(axes, reference, REF, r"$\hat G$", linewidth=1.2, linestyle="--")
        arrow(axes, 0.9 * found, RESULT, linewidth=2)
        axes.plot(
            *zip(0.9 * found, reference, strict=True), color=REF, linewidth=0.8, linestyle=":"
        )
    axes.set_title("cone: the direction in it nearest to $G$", fontsize=10)


def draw_regression(axes) -> None:
    """One loss's gradients are mostly noise; both have the same mean along G."""
    generator = torch.Generator().manual_seed(0)
    dimensions, steps = 30, 4000
    mean = torch.zeros(dimensions, dtype=torch.float64)
    mean[0] = 1.0
    # Noise per step of the distillation gradient, as a multiple of the mean's length.
    levels, shares = torch.linspace(0.0, 4.0, 17), []
    for level in levels:
        rows = torch.stack([mean, mean, mean]).expand(steps, 3, dimensions).clone()
        for row, noise in ((0, 1.0), (1, float(level)), (2, 1.0)):
            drawn = torch.randn(steps, dimensions, generator=generator, dtype=torch.float64)
            rows[:, row] += noise / dimensions**0.5 * drawn
        products = torch.einsum("sid,sjd->ij", rows, rows) / steps
        w = CrossBatchWeighting("regression", step="plain")(products)
        shares.append(float(w.kd / (w.ce + w.kd)))
    axes.plot(levels, shares, color=RESULT, linewidth=2, marker="o", markersize=3)
    axes.axhline(0.5, color=GRAY, linewidth=0.6)
    axes.axvline(1.0, color=GRAY, linewidth=0.6, linestyle=":")
    axes.annotate("as noisy as the other", (1.05, 0.93), color=GRAY, fontsize=8.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel(r"noise in $g_{kd}$, in lengths of its mean", fontsize=9)
    axes.set_ylabel(r"$w_{kd}\,/\,(w_{ce} + w_{kd})$", fontsize=9)
    axes.set_title("regression: noise weighs a gradient down", fontsize=10)
    axes.tick_params(labelsize=8)


def main() -> None:
    """Write the picture beside this file."""
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    draw_bisector(first)
    draw_cone(second)
    draw_regression(third)
    for axes in (first, second):
        axes.set_aspect("equal")
        axes.set_xlim(-0.4, 1.2)
        axes.set_ylim(-0.3, 1.2)
        axes.set_axis_off()
    third.spines[["top", "right"]].set_visible(False)
    # Without a date, so that the same picture is the same file.
    target = Path(__file__).with_name("readings.png")
    figure.savefig(target, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
