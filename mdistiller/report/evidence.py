"""The pages of all records: one with every table's answer, and one for every table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mdistiller.errors import DataError

from .contents import answer, build, compared, selection_rules
from .document import Block, Document, Picture, Table, Text, render, write_files
from .figures import draw, save_png
from .load import load_all
from .results import Results
from .study import tested

PAGE, PAGES = "evidence.md", "evidence"
# Within the folder of records: text by hand, which is taken over as it is.
NOTES = "notes"

_OPENING = (
    "Written by `python tools/report.py evidence` from the records of every run that was started "
    "and ended, done or failed, in {records}/. What is interpretation stands in {records}/notes/ "
    "and is taken over as it is; all else is computed. Each heading leads to a page with all "
    "tables and figures and the commands that make them. [Reading a report](report.md) defines "
    "the statistics, [the study](study.md) says what the grids are for."
)
# A report of its own has these of every table; here they would hide the others.
_LEFT_OUT = ("curves",)
# With more rows a line each is no picture any more.
_LINES = 12


def write_evidence(records: str | Path, out: str | Path, rule: str = "last") -> Path:
    """Write ``out/evidence.md``, and a page with figures for every table into ``out/evidence/``.

    Args:
        records: the folder of records.
        rule: selection rule that comes first, "last" or "best" epoch; accuracies and their
            differences are shown by both, all else by this one.

    Returns:
        The first page.

    Raises:
        DataError: there are no records, or they are damaged.
        MdistillerError: ``out`` cannot be written.
    """
    records, out = Path(records), Path(out)
    parts = ["# Evidence", _OPENING.format(records=records), *_note(records, "evidence")]
    files: dict[str, str | bytes] = {}
    seen: set[tuple[str, str]] = set()
    for results in load_all(records):
        place = results.name, results.dataset
        name, title = "-".join(place), f"{results.title}: {results.dataset}"
        if place in seen:  # with other settings than most of its runs
            name, title = f"{name}-{results.settings}", f"{title}, settings {results.settings}"
        parts.append(f"## [{title}]({PAGES}/{name}.md)")
        parts.append(_markdown(_summary(results, rule, brief=place in seen)))
        files |= _page(results, title, name, records, rule)
        seen.add(place)
    write_files(out / PAGES, files)
    write_files(out, {PAGE: "\n\n".join(parts) + "\n"})
    return out / PAGE


def _summary(results: Results, rule: str, brief: bool) -> Iterator[Block]:
    """How many runs, and unless ``brief`` what came of them."""
    yield Text(f"{len(results.done)} runs.")
    part = tested(results)
    for block in answer(part, compared(part, selection_rules(part, rule)[:1])) if not brief else ():
        if isinstance(block, Table):
            yield block


def _page(
    results: Results, title: str, name: str, records: Path, rule: str
) -> dict[str, str | bytes]:
    """A table's page and its figures."""
    part = tested(results)
    left_out = (*_LEFT_OUT, *["equal_time"] * (len(part.rows) > _LINES))
    drawn = {d.name: d for d in draw(part, rule, left_out)}
    pictures = {key: Picture(f"{name}-{key}", d.caption) for key, d in drawn.items()}
    report = f"python tools/report.py {results.name} --dataset {results.dataset}"
    report += f" --records {records} --settings {results.settings}"
    shell = "\n".join(("```sh", *results.commands, report, "```"))
    blocks = build(results, rule, pictures).blocks
    text = "\n\n".join((f"# {title}", shell, *_note(records, name), _markdown(blocks)))
    images = {f"{name}-{key}.png": save_png(d.figure) for key, d in drawn.items()}
    return {f"{name}.md": text + "\n", **images}


def _markdown(blocks: Iterable[Block]) -> str:
    return render(Document("", tuple(blocks)), "md").strip()


def _note(records: Path, name: str) -> list[str]:
    path = records / NOTES / f"{name}.md"
    try:
        return [path.read_text(encoding="utf-8").strip()] if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
