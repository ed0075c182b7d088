"""A report's files."""

from __future__ import annotations

from pathlib import Path

from mdistiller.errors import MdistillerError

from .contents import build
from .csv_files import cells_csv, runs_csv
from .figures import draw, save
from .html import to_html
from .latex import to_latex
from .markdown import to_markdown
from .plan import Plan
from .study import tested

# Within the table's folder, where no --out is given.
FOLDER = "report"


def write_report(plan: Plan, out: str | Path | None = None, rule: str = "last") -> Path:
    """Write report.html, .md, .tex, .csv, cells.csv and the figures as PNG and SVG.

    Args:
        out: folder, made if missing; files in it are replaced. None: ``report`` in the table's.
        rule: which selection rule comes first, "last" or "best" epoch.

    Returns:
        The page, ``report.html``.

    Raises:
        MdistillerError: the folder cannot be written.
    """
    folder = plan.root / FOLDER if out is None else Path(out)
    drawn = list(draw(tested(plan), rule))
    document = build(plan, rule, drawn)
    pictures = {d.name: save(d.figure) for d in drawn}
    files: dict[str, str | bytes] = {
        "report.html": to_html(document, {name: svg for name, (_, svg) in pictures.items()}),
        "report.md": to_markdown(document),
        "report.tex": to_latex(document),
        "report.csv": runs_csv(plan),
        "cells.csv": cells_csv(plan),
    }
    for name, (png, svg) in pictures.items():
        files |= {f"{name}.png": png, f"{name}.svg": svg}
    write_files(folder, files)
    return folder / "report.html"


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Put files into a folder, which is made if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
    except OSError as error:
        raise MdistillerError(
            f"cannot write into {folder} ({error.strerror or error}); give another --out"
        ) from None
