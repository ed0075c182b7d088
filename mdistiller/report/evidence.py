"""One page of all records: every table and figure with the command that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mdistiller.errors import DataError
from mdistiller.experiments.tables import TABLES

from .commands import commands
from .comparison import RULES, at_equal_epochs, at_equal_time, compare_rows, costs
from .document import Block, Heading, Listing, Picture, Text
from .dynamics import dynamics_tables
from .facts import facts
from .figures import Drawn, draw, save_png
from .markdown import blocks_to_markdown
from .plan import Plan
from .recorded import load_recorded, recorded_settings, recorded_tables
from .study import controls, longer, readings, tested
from .tables import RULE_TEXT, accuracy_table, cost_table, pooled_table, power_table
from .write import write_files

PAGE = "evidence.md"
# Within the folder of records: text by hand, which is taken over as it is.
NOTES = "notes"

_OPENING = (
    "Written by `python tools/report.py evidence` from the records of every run that was started "
    "and ended, done or failed ({folder}/*.jsonl). What is interpretation stands in "
    "{folder}/notes/ and is taken over as it is; all else is computed. docs/report.md defines the "
    "statistics, docs/study.md what the grids are for."
)
_ALIKE = "The best epoch is the last one in every run: both selection rules give these numbers."
# A report of its own has these of every table; here they would hide the others.
_LEFT_OUT = ("curves",)
# With more rows a line each is no picture any more.
_LINES = 12


def write_evidence(records: str | Path, out: str | Path, rule: str = "last") -> Path:
    """Write ``out/evidence.md``, and its figures as PNG into ``out/evidence/``.

    Args:
        records: the folder of records.
        rule: selection rule that comes first, "last" or "best" epoch; accuracies and their
            differences are shown by both, all else by this one.

    Returns:
        The page.

    Raises:
        DataError: there are no records, or they are damaged.
        MdistillerError: ``out`` cannot be written.
    """
    folder, out = Path(records), Path(out)
    known = [pair for pair in recorded_tables(folder) if pair[0] in TABLES]
    if not known:
        raise DataError(
            f"no records in {folder}; run tools/reproduce.py with --record {folder} first"
        )
    order = {name: number for number, name in enumerate(TABLES)}
    # The study first, and within it in its own order.
    known.sort(key=lambda pair: (not pair[0].startswith("grid"), order[pair[0]], pair[1]))
    parts = ["# Evidence", _OPENING.format(folder=folder), *_note(folder, "evidence")]
    pictures: dict[str, bytes] = {}
    for table, dataset in known:
        first, *others = recorded_settings(folder, table, dataset)
        for settings in (first, *others):
            plan = load_recorded(folder, table, dataset, settings=settings)
            part, drawn = _section(plan, folder, settings if settings in others else "", rule)
            parts += part
            pictures |= drawn
    write_files(out / "evidence", pictures)
    write_files(out, {PAGE: "\n\n".join(parts) + "\n"})
    return out / PAGE


def _section(
    plan: Plan, folder: Path, settings: str, rule: str
) -> tuple[list[str], dict[str, bytes]]:
    """Paragraphs and figure files of a table; ``settings`` unless they are those of most runs."""
    name = "-".join(filter(None, (plan.table, plan.dataset, settings)))
    part = tested(plan)
    left_out = {*_LEFT_OUT, *(["equal_time"] if len(part.rows) > _LINES else [])}
    drawn = [d for d in draw(part, rule) if d.name not in left_out]
    pictures: dict[str, bytes] = {}
    for one in drawn:
        stem = f"{name}-{one.name}"
        pictures[f"{stem}.png"] = save_png(one.figure)
    heading = f"## {plan.title}: {plan.dataset}" + (f", settings {settings}" if settings else "")
    blocks = blocks_to_markdown(list(_blocks(plan, name, drawn, rule)))
    shell = "\n".join(("```sh", *commands(plan, folder, settings), "```"))
    return [heading, shell, *_note(folder, name), blocks], pictures


def _note(folder: Path, name: str) -> list[str]:
    path = folder / NOTES / f"{name}.md"
    try:
        return [path.read_text().strip()] if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def _blocks(plan: Plan, name: str, drawn: list[Drawn], rule: str) -> Iterator[Block]:
    counts = ", ".join(f"{n} {state}" for state, n in plan.states.items() if n)
    yield Text(f"{len(plan.runs)} runs: {counts}.")
    if plan.remarks:
        yield Listing(plan.remarks)
    part = tested(plan)
    rules = sorted(RULES, key=lambda r: r != rule)
    done = [run for run in part.runs if run.state == "done"]
    alike = bool(done) and all(run.accuracy("last") == run.accuracy("best") for run in done)
    if alike:
        rules = rules[:1]
    yield from (accuracy_table(part, each) for each in rules)
    if alike:
        yield Text(_ALIKE)
    yield Listing(facts(part))
    for each in rules:
        found = compare_rows(part, at_equal_epochs(each))
        what = f"percentage points of test top-1, {RULE_TEXT[each]}"
        if found:
            yield pooled_table(part, found, f"Mean paired difference, {what}")
        if found and each == rule:
            yield power_table(part, found, what)
    yield from _lower(readings(plan, [rule]))
    yield from _lower(controls(plan, [rule]))
    yield from dynamics_tables(part)
    if measured := tuple(costs(part)):
        yield cost_table(part, measured)
        if timed := compare_rows(part, at_equal_time(rule)):
            what = f"percentage points of test top-1 at equal training time, {rule} epoch by then"
            yield pooled_table(part, timed, f"Mean paired difference, {what}")
    yield from _lower(longer(part, [rule]))
    for one in drawn:
        yield Picture(f"evidence/{name}-{one.name}", one.caption)


def _lower(blocks: Iterator[Block]) -> Iterator[Block]:
    """Headings one level further down."""
    for block in blocks:
        yield Heading(block.text, 3) if isinstance(block, Heading) else block
