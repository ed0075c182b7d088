"""The pages of all records: one with every table's answer, one for every table, and an archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mdistiller.errors import DataError

from .comparison import compare
from .contents import build
from .document import Block, Document, Picture, render, write_files
from .figures import draw, save_png
from .load import load_all
from .results import Results
from .study import tested
from .tables import RULE_TEXT, verdict_table

PAGE, PAGES, ARCHIVE = "results.md", "results", "archive"
# Within the folder of records: text by hand, which is taken over as it is.
NOTES = "notes"

_OPENING = (
    "Made by `python tools/report.py evidence` from the records in {records}/: words are written "
    "by hand ({records}/notes/), numbers and figures are computed. Tables: mean paired difference "
    "to the second column's method at equal epochs, percentage points of test top-1, {rule}; "
    "better or worse where its 95 % interval excludes zero, not corrected for the number of rows. "
    "Each heading's page has all tables and the commands that trained them. "
    "[How to read them](report.md) · [what the grids are](study.md) · "
    "[runs with other settings]({pages}/archive.md)"
)
_OTHERS = (
    "# Archive\n\nRuns with other settings than most of their table's. They count nowhere else. "
    "Back to [the results](../{page})."
)
# A report of its own has these of every table; here they would hide the others.
_LEFT_OUT = ("curves",)
# With more rows a line each is no picture any more, and a table none that is read.
_LINES = 12


def write_evidence(records: str | Path, out: str | Path, rule: str = "last") -> Path:
    """Write ``out/results.md``, and a page with figures for every table into ``out/results/``.

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
    opening = _OPENING.format(records=records, rule=RULE_TEXT[rule], pages=PAGES)
    parts = ["# Results", opening, *_note(records, "results")]
    archive = [_OTHERS.format(page=PAGE), *_note(records, ARCHIVE)]
    files: dict[str, str | bytes] = {}
    seen: set[tuple[str, str]] = set()
    for results in load_all(records):
        place = results.name, results.dataset
        name, title = "-".join(place), f"{results.title}: {results.dataset}"
        others = place in seen
        if others:
            name, title = f"{name}-{results.settings}", f"{title}, settings {results.settings}"
            archive.append(f"- [{title}]({name}.md): {len(results.done)} runs")
        seen.add(place)
        page = _page(results, title, name, records, rule)
        if not others:
            parts += _section(results, title, name, records, rule, set(page))
        files |= page
    files[f"{ARCHIVE}.md"] = "\n\n".join(archive) + "\n"
    write_files(out / PAGES, files)
    write_files(out, {PAGE: "\n\n".join(parts) + "\n"})
    return out / PAGE


def _section(
    results: Results, title: str, name: str, records: Path, rule: str, files: set[str]
) -> Iterator[str]:
    """A table on the first page: the start of its note, differences in two forms, the command."""
    yield f"## [{title}]({PAGES}/{name}.md)"
    yield from (note.partition("\n\n")[0] for note in _note(records, name))
    part = tested(results)
    found = compare(part, part.compared, rule)
    if 0 < len(found) <= _LINES:
        yield _markdown([verdict_table(part, {rule: found})], captions=False)
    if f"{name}-differences.png" in files:
        yield f"![Paired differences with 95 % intervals: {title}]({PAGES}/{name}-differences.png)"
    yield f"{len(results.done)} runs; `{_command(results, records)}`"


def _command(results: Results, records: Path) -> str:
    """What makes this table's report of the records."""
    where = f"--dataset {results.dataset} --records {records} --settings {results.settings}"
    return f"python tools/report.py {results.name} {where}"


def _page(
    results: Results, title: str, name: str, records: Path, rule: str
) -> dict[str, str | bytes]:
    """A table's page and its figures."""
    part = tested(results)
    left_out = (*_LEFT_OUT, *["equal_time"] * (len(part.rows) > _LINES))
    drawn = {d.name: d for d in draw(part, rule, left_out)}
    pictures = {key: Picture(f"{name}-{key}", d.caption) for key, d in drawn.items()}
    shell = "\n".join(("```sh", *results.commands, _command(results, records), "```"))
    blocks = build(results, rule, pictures).blocks
    text = "\n\n".join((f"# {title}", shell, *_note(records, name), _markdown(blocks)))
    images = {f"{name}-{key}.png": save_png(d.figure) for key, d in drawn.items()}
    return {f"{name}.md": text + "\n", **images}


def _markdown(blocks: Iterable[Block], captions: bool = True) -> str:
    text = render(Document("", tuple(blocks)), "md").strip()
    return text if captions else text.partition("\n\n")[2]


def _note(records: Path, name: str) -> list[str]:
    path = records / NOTES / f"{name}.md"
    try:
        return [path.read_text(encoding="utf-8").strip()] if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
