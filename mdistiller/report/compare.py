"""Any runs side by side: what differs in their configurations, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdistiller.errors import DataError

from . import numbers
from .comparison import same_machine
from .document import Document, Heading, Listing, Picture, Table
from .figures import save
from .figures.curves import ENLARGED_FROM, enlarge_end
from .figures.style import epoch_axis, legend, line_style, panels, styled
from .html import to_html
from .markdown import to_text
from .runs import Run, read_run
from .write import write_files


def compare_runs(folders: Sequence[str | Path], out: str | Path | None = None) -> str:
    """Compare run folders, complete or not; the first is the one the others are measured by.

    Args:
        out: if given, ``compare.html`` and the curves as PNG and SVG are written there.

    Returns:
        The comparison as text for a terminal.

    Raises:
        DataError: a folder is no run's, or damaged.
    """
    runs = {name: _open(path) for name, path in _names(folders).items()}
    configs = [_flat(_config(run.folder)) for run in runs.values()]
    tables = _tables(list(runs), list(runs.values()), configs)
    document = Document(f"{len(runs)} runs side by side", tuple(tables))
    if out is not None:
        figure = _curves(runs)
        png, svg = save(figure)
        caption = "Test accuracy over epochs and over training time; weights where they change."
        picture = Picture("compare", caption)
        page = Document(document.title, (*document.blocks, Heading("Curves"), picture))
        files = {"compare.html": to_html(page, {"compare": svg}), "compare.png": png}
        write_files(Path(out), {**files, "compare.svg": svg})
    return to_text(document)


def _names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Each folder by the shortest end of its path that tells it from the others."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    if len(set(paths)) < len(paths):
        raise DataError("the same run is given twice; name each once")
    for length in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-length:]) for p in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def _open(path: Path) -> Run:
    if not (path / "config.yaml").is_file():
        raise DataError(f"{path} is no run's folder (no config.yaml); give output/<project>/<run>")
    run = read_run(path.parent, path.name)
    if run.state == "broken":
        raise DataError(f"{path} is broken: {run.reason}; train it again")
    if not run.history:
        raise DataError(f"{path} has no complete epoch yet; wait for one")
    return run


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        read = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        read = None
    if not isinstance(read, dict):
        raise DataError(f"{path} is damaged; train that run again")
    return read


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted names."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _tables(
    names: list[str], runs: list[Run], configs: list[dict[str, Any]]
) -> Iterator[Table | Listing]:
    keys = sorted({key for config in configs for key in config})
    differing = [
        (key, *(str(config.get(key, "")) for config in configs))
        for key in keys
        if len({str(config.get(key)) for config in configs}) > 1
    ]
    # Labels all of them: configuration values are words and numbers mixed.
    caption = "Differences of the configurations" + ("" if differing else ": none")
    yield Table(caption, ("key", *names), tuple(differing), labels=1 + len(names))
    yield Table("What came of it (test top-1 in %)", ("", *names), tuple(_outcome(runs)))
    unlike = [n for n, run in zip(names, runs, strict=True) if not same_machine(run, runs[0])]
    if unlike and all(run.state == "done" for run in runs):
        others = ", ".join(unlike)
        words = "other device, threads or number of runs in the process"
        yield Listing((f"times cannot be compared: {words} in {others}",))


def _outcome(runs: list[Run]) -> Iterator[tuple[str, ...]]:
    accuracies = [run.curve("test_acc") for run in runs]
    seconds = [float(np.median(run.curve("seconds"))) for run in runs]
    last = [float(a[-1]) for a in accuracies]
    best = [float(a.max()) for a in accuracies]
    # The later of equal epochs, as the trainer counts.
    epoch = [len(a) - int(a[::-1].argmax()) for a in accuracies]
    yield ("state", *(run.state for run in runs))
    yield ("seed", *(str(run.result.get("seed", "")) for run in runs))
    yield ("epochs completed", *(str(len(run.history)) for run in runs))
    for title, values in (("last epoch", last), ("best epoch, chosen on the test images", best)):
        yield (title, *map(numbers.fixed, values))
        gaps = (numbers.fixed(value - values[0], sign=True) for value in values[1:])
        yield (f"{title.split(',')[0]}, minus the first run's", "", *gaps)
    yield ("number of the best epoch", *map(str, epoch))
    yield ("training time", *(numbers.duration(float(run.seconds[-1])) for run in runs))
    yield ("median time / epoch", *map(numbers.duration, seconds))
    yield ("cost factor to the first run", "", *(_factor(s, seconds[0]) for s in seconds[1:]))
    yield ("device", *(str(run.result.get("device", "")) for run in runs))
    yield ("threads", *(str(run.result.get("threads", "")) for run in runs))
    yield ("runs in its process", *(", ".join(map(str, run.fleets)) for run in runs))
    for key in ("ce", "kd"):
        if any(run.dynamics for run in runs):
            yield (f"weight of {key}, first → last epoch", *(_weight(run, key) for run in runs))


def _factor(mine: float, first: float) -> str:
    return f"{mine / first:.2f}" if first else numbers.NONE


def _weight(run: Run, key: str) -> str:
    if run.dynamics is None:
        return ""
    curve = run.curve(run.dynamics, key)
    return f"{numbers.fixed(curve[0], 3)} → {numbers.fixed(curve[-1], 3)}"


def _curves(runs: Mapping[str, Run]) -> Figure:
    """Accuracy over epochs and over time, and the weights where there are any."""
    dynamic = any(run.dynamics for run in runs.values())
    ends = max(len(run.history) for run in runs.values()) >= ENLARGED_FROM
    titles = ["over epochs", "over training time"]
    titles += ["last quarter"] * ends + ["weight of ce", "weight of kd"] * dynamic
    with styled():
        figure, grid = panels(titles)
        axes = {title: own[0] for title, own in zip(titles, grid, strict=True)}
        for number, (name, run) in enumerate(runs.items()):
            _draw_run(axes, run, {**line_style(number), "label": name})
        if ends:
            enlarge_end(axes["last quarter"])
        for title, one in axes.items():
            epoch_axis(one)
            if not title.startswith("weight"):
                one.set_ylabel("test top-1 in %")
        axes["over training time"].set_xlabel("seconds")
        legend(figure, list(axes.values()))
    return figure


def _draw_run(axes: Mapping[str, Axes], run: Run, style: dict[str, Any]) -> None:
    """One line in every panel."""
    style = {**style, "markevery": max(1, len(run.history) // 8)}
    epochs, accuracy = run.curve("epoch"), run.curve("test_acc")
    for title, one in axes.items():
        if title == "over training time":
            one.plot(run.seconds, accuracy, **style)
        elif not title.startswith("weight"):
            one.plot(epochs, accuracy, **style)
        elif run.dynamics:
            one.plot(epochs, run.curve(run.dynamics, title.removeprefix("weight of ")), **style)
