"""What a report says, in which order: the answer first, and every fact once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .comparison import Comparison, compare
from .csv_files import cells_csv, runs_csv
from .document import Block, Document, Heading, Listing, Picture, Table, Text, render, write_files
from .facts import facts
from .figures import draw, save
from .results import RULES, Results
from .study import controls, longer, readings, tested
from .tables import (
    RULE_TEXT,
    accuracy_table,
    cost_table,
    difference_table,
    dynamics_tables,
    power_table,
    protocol_table,
    state_table,
    tests_table,
    verdict_table,
)

# Within the table's folder, where no --out is given.
FOLDER = "report"

_INTERVAL = (
    "Differences are paired by trial: a row and its baseline start from the same student and see "
    "the same batches. The 95 % confidence interval of one {word} is the t interval of its paired "
    "differences. That of the mean over {word}s gives every {word} the same weight, takes its "
    "variance from the scatter within each {word} (trials of different {word}s have different "
    "seeds, so they are independent) and its degrees of freedom from Welch and Satterthwaite. It "
    "says what other seeds would give for these {word}s, not what other {word}s would give. The "
    "paired t test belongs to this interval; the exact two-sided sign test takes the trials of "
    "all {word}s and leaves out ties. No p value is corrected for the number of rows."
)
_TIME = (
    "A step of cross-batch weighting costs more than a vanilla one, so equal epochs are not equal "
    "time. The fair comparison at equal time is a training with fewer epochs (SOLVER.EPOCHS "
    "divided by the cost factor, SOLVER.LR_DECAY_STAGES alike), or a baseline with more, as grid_d "
    "has. Times were taken while whatever else ran on the machine; runs on different devices, with "
    "different numbers of threads, or that shared their teacher with different numbers of others "
    "are left out."
)
_ALIKE = "The best epoch is the last one in every run: both selection rules give these numbers."


def write_report(results: Results, out: str | Path | None = None, rule: str = "last") -> Path:
    """Write report.html, .md, .tex, .csv, cells.csv and the figures as PNG and SVG.

    Args:
        out: folder, made if missing; files in it are replaced. None: ``report`` in the table's.
        rule: which selection rule comes first, "last" or "best" epoch.

    Returns:
        The page, ``report.html``.

    Raises:
        MdistillerError: the folder cannot be written.
    """
    folder = results.root / FOLDER if out is None else Path(out)
    write_files(folder, {})  # where it cannot be made, before all is drawn
    drawn = list(draw(tested(results), rule))
    document = build(results, rule, {d.name: Picture(d.name, d.caption) for d in drawn})
    images = {d.name: save(d.figure) for d in drawn}
    files: dict[str, str | bytes] = {
        "report.html": render(document, "html", {name: svg for name, (_, svg) in images.items()}),
        "report.md": render(document, "md"),
        "report.tex": render(document, "tex"),
        "report.csv": runs_csv(results),
        "cells.csv": cells_csv(results),
    }
    for name, (png, svg) in images.items():
        files |= {f"{name}.png": png, f"{name}.svg": svg}
    write_files(folder, files)
    return folder / "report.html"


def build(results: Results, rule: str, pictures: Mapping[str, Picture]) -> Document:
    """The report.

    Args:
        rule: the selection rule that comes first, "last" or "best" epoch.
        pictures: by the names of :mod:`~.figures`; a name that is missing was not drawn.
    """
    title = f"{results.title} ({results.name} on {results.dataset})"
    part = tested(results)
    rules = selection_rules(part, rule)
    found = compared(part, rules)
    blocks = [
        *_counts(results),
        *answer(part, found),
        *_accuracy(part, rules, pictures),
        *_details(part, found, pictures),
        *readings(results, rule),
        *controls(results, rule),
        *_dynamics(part, pictures),
        *_cost(part, pictures),
        *longer(part, rule),
        Heading("How these numbers were made"),
        Listing(facts(part)),
        *_states(results),
    ]
    return Document(title, tuple(blocks))


def selection_rules(results: Results, rule: str) -> list[str]:
    """The rule that comes first, and the other one if it gives other numbers."""
    done = results.done
    alike = len(done) and (done["last_top1"] == done["best_top1"]).all()
    return [rule] if alike else sorted(RULES, key=lambda r: r != rule)


def _counts(results: Results) -> Iterator[Block]:
    counts = ", ".join(f"{n} {state}" for state, n in results.states.items())
    yield Text(f"{len(results.runs)} runs: {counts}. Only the done ones are counted below.")
    if results.remarks:
        yield Listing(results.remarks)


def compared(results: Results, rules: list[str]) -> dict[str, list[Comparison]]:
    """Every row with its baseline by selection rules; nothing where no row has one."""
    found = {rule: compare(results, results.compared, rule) for rule in rules}
    return {rule: comparisons for rule, comparisons in found.items() if comparisons}


def _what(rule: str) -> str:
    return f"percentage points of test top-1, {RULE_TEXT[rule]}"


def answer(results: Results, found: dict[str, list[Comparison]]) -> Iterator[Block]:
    """Every row beside its baseline at equal epochs, in one table."""
    if found:
        yield Heading("Verdict")
        yield verdict_table(results, found)


def _accuracy(
    results: Results, rules: list[str], pictures: Mapping[str, Picture]
) -> Iterator[Block]:
    yield Heading("Accuracy")
    yield from (accuracy_table(results, rule) for rule in rules)
    if len(rules) < len(RULES):
        yield Text(_ALIKE)
    if protocols := protocol_table(results):
        yield protocols
    names = ("preference", "sensitivity_relative", "sensitivity_absolute", "curves")
    yield from (pictures[name] for name in names if name in pictures)


def _details(
    results: Results, found: dict[str, list[Comparison]], pictures: Mapping[str, Picture]
) -> Iterator[Block]:
    if not found:
        return
    word = results.column_word
    yield Heading("How sure the differences are")
    yield Text(_INTERVAL.format(word=word))
    if "differences" in pictures:
        yield pictures["differences"]
    for rule, comparisons in found.items():
        if len(results.columns) > 1:
            caption = f"Paired difference (n) with its 95 % CI per {word}, {_what(rule)}"
            yield difference_table(results, comparisons, caption)
        yield tests_table(results, comparisons, _what(rule))
        if comparisons is next(iter(found.values())):
            yield power_table(results, comparisons, _what(rule))


def _dynamics(results: Results, pictures: Mapping[str, Picture]) -> Iterator[Block]:
    found: list[Block] = [*dynamics_tables(results)]
    found += [pictures[name] for name in ("weights", "cosines") if name in pictures]
    if found:
        yield Heading("Weights and gradients over training")
        yield from found


def _cost(results: Results, pictures: Mapping[str, Picture]) -> Iterator[Block]:
    costs = cost_table(results)
    if costs:
        yield Heading("Time")
        yield Text(_TIME)
        yield costs
    if "equal_time" in pictures:
        yield pictures["equal_time"]


def _states(results: Results) -> Iterator[Block]:
    told = results.runs[results.runs["reason"] != ""].drop_duplicates("folder")
    if results.states["done"] == len(results.runs) and told.empty:
        return
    yield Heading("Which runs are there")
    yield state_table(results)
    for run in told.sort_values("state").itertuples():
        name = run.folder.name
        if run.state == "failed":
            yield Text(f"{name}: {run.reason}; the end of its log:")
            yield Listing(run.tail or ("(nothing)",), verbatim=True)
        else:
            yield Listing((f"{name}: {run.state}, {run.reason}",))


def answer_in_text(results: Results, rule: str) -> str:
    """The table of accuracies and that of differences, for a terminal."""
    part = tested(results)
    blocks = accuracy_table(part, rule), *answer(part, compared(part, [rule]))
    return render(Document("", tuple(b for b in blocks if isinstance(b, Table))), "txt")
