"""How all figures look, and how they become files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..palette import COLOURS, MARKERS
from ..results import Results

GREY = "#50565e"

# No more panels side by side than a page shows readably.
MAX_ACROSS = 4
PANEL = (3.3, 2.6)

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "font.family": ["DejaVu Sans"],
    # Without these two an SVG would differ from one time to the next, and between machines.
    "svg.hashsalt": "mdistiller",
    "svg.fonttype": "path",
}


# As many lines of a legend fit above panels as they are; a further one has this height.
_LEGEND_ROWS, _LEGEND_LINE = 3, 0.19

# Beyond the number of colours the line tells those of equal colour apart.
_LINES = ("-", "-.", ":")
# A path's coordinates are in points; more than two decimals only make files large.
_COORDINATES = re.compile(rb' d="[^"]*"')


def styled() -> Any:
    """The context in which figures are to be drawn and saved."""
    return matplotlib.rc_context(_RC)


def save(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG; the same figure gives the same bytes."""
    name_series(figure)
    svg = _save(figure, "svg", {"Date": None})
    return save_png(figure), _COORDINATES.sub(_shorten, svg)


def save_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    return _save(figure, "png", {"Software": None})


def name_series(figure: Figure) -> None:
    """Write into the figure's SVG what every line and bar is, as groups ``series-<n>-<name>``.

    The page shows the name under the pointer. It is quoted as in an address.
    """
    number = 0
    for axes in figure.get_axes():
        bars = [(c.get_label(), c.get_children()) for c in axes.containers]
        drawn = {artist for _, own in bars for artist in own}
        single = [a for a in (*axes.lines, *axes.collections) if a not in drawn]
        for label, artists in (*bars, *((a.get_label(), [a]) for a in single)):
            if not label or str(label).startswith("_"):
                continue
            name = " · ".join(filter(None, (str(label), axes.get_title().replace("\n", " "))))
            for artist in artists:
                artist.set_gid(f"series-{number}-{quote(name)}")
                number += 1


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
    return file.getvalue()


def _shorten(match: re.Match[bytes]) -> bytes:
    return re.sub(rb"(\.\d\d)\d+", rb"\1", match[0])


def line_style(number: int, dashed: bool = False) -> dict[str, Any]:
    """Colour, marker and line of the ``number``-th thing to be told apart."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        "color": colour,
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": "--" if dashed else _LINES[number // len(COLOURS) % len(_LINES)],
        "markerfacecolor": "white" if dashed else colour,
        "markeredgecolor": colour,
    }


def row_styles(results: Results) -> dict[str, dict[str, Any]]:
    """A style for every row: a colour a method, dashed and hollow for a baseline.

    Where all rows are of one method every row has a colour of its own.
    """
    methods = list(dict.fromkeys(row.method for row in results.rows))
    variants = {(row.method, row.baseline is None) for row in results.rows}
    by_method = len(methods) > 1 and len(variants) == len(results.rows)
    baselines = {row.baseline for row in results.rows}
    return {
        row.key: line_style(methods.index(row.method) if by_method else i, row.key in baselines)
        for i, row in enumerate(results.rows)
    }


def panels(titles: Sequence[str], rows_each: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure with ``rows_each`` panels below each other for every title.

    Returns:
        The figure, and the panels as [titles][rows_each].
    """
    across = _across(len(titles))
    blocks = -(-len(titles) // across)
    size = PANEL[0] * max(across, 2), PANEL[1] * blocks * rows_each + 0.5
    figure = Figure(figsize=size)
    figure.set_layout_engine("constrained", h_pad=0.07)
    grid = figure.subplots(blocks * rows_each, across, squeeze=False)
    found = []
    for i, title in enumerate(titles):
        block, column = divmod(i, across)
        own = [grid[block * rows_each + j][column] for j in range(rows_each)]
        own[0].set_title(title)
        found.append(own)
    for unused in range(len(titles), blocks * across):
        for j in range(rows_each):
            grid[(blocks - 1) * rows_each + j][unused % across].set_axis_off()
    return figure, found


def _across(count: int) -> int:
    """As few rows as possible, filled evenly."""
    rows = -(-count // MAX_ACROSS)
    return -(-count // rows)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, above them; a name that occurs often is there once."""
    handles: dict[str, Artist] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    width = figure.get_size_inches()[0]
    longest = max(map(len, handles), default=1)
    columns = max(1, min(len(handles), int(width / (0.075 * longest + 0.55))))
    rows = -(-len(handles) // columns)
    # Filled column by column, so that with an even number a row stands below its baseline.
    rows += rows > 1 and rows % 2
    columns = -(-len(handles) // rows) if rows else 1
    # A long legend must not take the panels' room.
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LEGEND_LINE * max(0, rows - _LEGEND_ROWS))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=columns,
        handlelength=3,
    )


def draw_band(
    axes: Axes, x: np.ndarray, values: np.ndarray, style: dict[str, Any], label: str
) -> None:
    """Mean of values [trials, epochs] over the trials, with their sample deviation as a band."""
    mean = values.mean(axis=0)
    # Few markers, so that they mark the line and do not hide it; alone points need them.
    every = max(1, len(x) // 8)
    axes.plot(x, mean, label=label, markevery=every, **style)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
        axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)


def x_of(line: Line2D) -> np.ndarray:
    """Where the points of a line are, [points]."""
    return np.asarray(line.get_xdata(), dtype=float)


def is_first_column(axes: Axes) -> bool:
    """Whether a panel of :func:`panels` stands at the left."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def integer_ticks(axes: Axes) -> None:
    """Ticks at whole epochs only, also where there is but one."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if max((len(x_of(line)) for line in axes.get_lines()), default=0) == 1:
        axes.set_xlim(0.5, 1.5)
