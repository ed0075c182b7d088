"""Draws verdict-light.svg and verdict-dark.svg: run python docs/figures/verdict.py.

What cross-batch weighting did to the accuracy, by the records in results/.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mdistiller.report import load_table
from mdistiller.report.comparison import compare
from mdistiller.report.numbers import bounds, fixed
from mdistiller.report.statistics import Interval

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(f"{m}_crossbatch", m) for m in ("kd", "rkd", "at", "kdsvd", "pkt")]
ALPHA_1 = [pair for pair in PAIRS if pair[1] != "rkd"]
# Tables, settings where not those of most runs, what stands above their rows, and pairs of rows:
# the first minus the second.
GROUPS = (
    ("grid_a", "glyphs", "b93768", "glyphs, α 1, one pair of networks", ALPHA_1),
    ("grid_a", "glyphs", None, "glyphs, α 0.5, two pairs", PAIRS),
    ("grid_a", "fashion_mnist", None, "Fashion-MNIST, α 0.5, one pair", PAIRS),
    ("grid_d", "glyphs", None, "instead: longer training, on glyphs", [("longer", "vanilla")]),
)
COLOURS = {"light": ("#1c1e21", "#0072B2", "#8b939c"), "dark": ("#e8eaed", "#6cb6f0", "#7c858f")}


def rows() -> list[tuple[str, str, Interval | None]]:
    """Name, text and interval of every row from the top; a heading has no interval."""
    found: list[tuple[str, str, Interval | None]] = []
    for table, dataset, settings, heading, pairs in GROUPS:
        results = load_table(table, dataset, records=ROOT / "results", settings=settings)
        found.append((heading, "", None))
        asked = [(results.by_key[one], results.by_key[other]) for one, other in pairs]
        for c in compare(results, asked, "last"):
            name = c.row.label.removesuffix(" + ours")
            words = f"{fixed(c.pooled.mean, sign=True)} {bounds(c.pooled)}"
            found.append((name, words, c.pooled))
    return found


def draw(text: str, colour: str, quiet: str) -> Figure:
    """The plot in three colours: of words, of points with intervals, of headings."""
    found = rows()
    style = {"font.size": 10, "svg.hashsalt": "mdistiller", "svg.fonttype": "path"}
    with matplotlib.rc_context({**style, "text.color": text, "axes.labelcolor": text}):
        figure = Figure(figsize=(5.2, 0.25 * len(found) + 0.8), layout="constrained")
        axes = figure.subplots()
        for y, (name, words, interval) in enumerate(found):
            if interval is None:
                axes.text(-1.2, y, name, fontsize=9, color=quiet, va="center", style="italic")
                continue
            reach = [[interval.mean - interval.low], [interval.high - interval.mean]]
            clear = interval.low > 0 or interval.high < 0
            face = colour if clear else "none"
            drawn = axes.errorbar(
                interval.mean, y, xerr=reach, fmt="none", ecolor=colour, elinewidth=1.6, capsize=3
            )
            drawn.lines[2][0].set_gid(f"row: {name}: {words}")
            axes.plot(interval.mean, y, "o", color=colour, markerfacecolor=face, markersize=6)
        places = [y for y, row in enumerate(found) if row[2]]
        axes.set_yticks(places, [found[y][0] for y in places])
        axes.set(xlim=(-1.25, 1.65), ylim=(len(found) - 0.4, -0.7))
        axes.axvline(0, color=quiet, linewidth=0.9)
        axes.tick_params(colors=text, length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("with the weighting minus without, points of top-1")
    return figure


def main() -> None:
    for name, colours in COLOURS.items():
        target = Path(__file__).with_name(f"verdict-{name}.svg")
        with matplotlib.rc_context({"svg.hashsalt": "mdistiller", "svg.fonttype": "path"}):
            draw(*colours).savefig(target, transparent=True, metadata={"Date": None})
        lines = target.read_text(encoding="utf-8").splitlines()
        target.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
