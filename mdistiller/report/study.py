"""What the study's grids have beyond other tables: a choice on held-out images, and controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from mdistiller.experiments.tables import Column
from mdistiller.experiments.tables.layouts import Row
from mdistiller.experiments.tables.study import (
    BEST_FIXED,
    CANDIDATES,
    CONTROL,
    LONGER,
    RULES_OUT_OF,
    SELECTION,
    SOURCE,
    TIMES_LONGER,
)

from . import numbers
from .comparison import Comparison, compare, costs
from .document import Block, Heading, Listing, Table, Text, table
from .results import Results
from .statistics import LEVEL, Spread, holm, spread

_CONTROLS = (
    "Each control takes one thing away that the weighting has. The difference is the weighting "
    "minus the control, paired by trial. What the second column names is ruled out as the "
    "explanation of a gain where the interval is above zero, and remains possible where it is not."
)

_READINGS = (
    "The difference is the reading minus {source}, paired by trial. The rule, set before there "
    "were results: the shipped reading gives way to the one with the highest mean difference "
    "among those better at p < {level:.2g} after Holm's correction for their number."
)

_LONGER = (
    "Here plain KD has {times} times the epochs, its decays in proportion, and no schedule is cut "
    "short. It costs {times} times KD's time, a weighting its cost factor. The difference is the "
    "row minus this longer KD, paired by trial: what a weighting gains over it, it gains at about "
    "equal time, or at less than equal time where its factor is below {times}."
)


@dataclass(frozen=True)
class Choice:
    """Weights of cross-entropy chosen in one column.

    Attributes:
        x: with the highest mean accuracy on held-out images, the smallest of equal ones.
        scores: those accuracies by weight.
    """

    column: Column
    x: float
    scores: dict[float, Spread]


def choices(results: Results) -> list[Choice]:
    """For every column in which all weights were tried on held-out images, by their last epoch."""
    rows = [row for row in results.rows if row.variant == SELECTION]
    found = []
    for column in results.columns:
        tried = [(row.x, spread(results.top1(row.key, column.key, "last"))) for row in rows]
        scores = {x: held for x, held in tried if x is not None and held is not None}
        if scores and all(held for _, held in tried):
            best, _ = max(scores.items(), key=lambda item: (item[1].mean, -item[0]))
            found.append(Choice(column, best, scores))
    return found


def tested(results: Results) -> Results:
    """The results without runs on held-out images, and with a row of the weights they chose.

    What the runs of :data:`SELECTION` rows call test accuracy is that on held-out images.
    """
    rows = [row for row in results.rows if row.variant != SELECTION]
    if len(rows) == len(results.rows):
        return results
    runs = results.runs[results.runs["row"].isin([row.key for row in rows])]
    by_weight = {row.x: row for row in rows if row.x is not None}
    chosen = [(c, by_weight[c.x]) for c in choices(results) if c.x in by_weight]
    if chosen:
        label = "control 5: KD, best fixed weights"
        baseline = next((r.baseline for r in rows if r.baseline), None)
        rows.append(Row(BEST_FIXED, label, "KD", CONTROL, baseline, None))
        again = [results.cell(row.key, choice.column.key) for choice, row in chosen]
        runs = pd.concat([runs, *(cell.assign(row=BEST_FIXED) for cell in again)])
    return replace(results, rows=tuple(rows), runs=runs.reset_index(drop=True))


def controls(results: Results, rule: str) -> Iterator[Block]:
    """The controls, with what each of them rules out; nothing where there are none.

    Args:
        results: with the runs on held-out images.
    """
    part = tested(results)
    tables = [found for key in RULES_OUT_OF if (found := _controls_of(part, key, rule))]
    if not tables:
        return
    yield Heading("Controls")
    yield Text(_CONTROLS)
    yield from tables
    yield from _selection(results)


def _controls_of(results: Results, key: str, rule: str) -> Table | None:
    """The row ``key`` minus each of its controls, if there are any."""
    source = results.by_key.get(key)
    present = [results.by_key[k] for k in RULES_OUT_OF[key] if k in results.by_key]
    if source is None or not present:
        return None
    found = {c.other.key: c for c in compare(results, [(source, row) for row in present], rule)}
    lines = [
        (row.label, RULES_OUT_OF[key][row.key], *_difference(found.get(row.key))) for row in present
    ]
    head = ("control", "rules out", *_difference_head(results.column_word))
    caption = f"{source.label} minus control, percentage points of test top-1, {rule} epoch"
    return table(caption, head, lines, labels=2)


def readings(results: Results, rule: str) -> Iterator[Block]:
    """The other readings against the shipped one, and whether it should give way to one of them."""
    source = results.by_key.get(SOURCE)
    present = [results.by_key[key] for key in CANDIDATES if key in results.by_key]
    if source is None or not present:
        return
    found = compare(results, [(row, source) for row in present], rule)
    judged = list(zip(found, holm([entry.pooled.p for entry in found]), strict=True))
    yield Heading("Readings")
    yield Text(_READINGS.format(source=source.label, level=1 - LEVEL))
    lines = [(entry.row.label, *_difference(entry), numbers.probability(p)) for entry, p in judged]
    head = ("reading", *_difference_head(results.column_word), "Holm's p")
    caption = f"Reading minus {source.label}, percentage points of test top-1, {rule} epoch"
    yield table(caption, head, lines)
    better = [
        (entry.pooled.mean, entry.row.label)
        for entry, p in judged
        if entry.pooled.mean > 0 and p < 1 - LEVEL
    ]
    verdict = f"{max(better)[1]} should take its place" if better else "the shipped one stays"
    yield Listing((f"by the rule, {verdict}",))


def longer(results: Results, rule: str) -> Iterator[Block]:
    """Weightings against KD that is trained for about as long as they are."""
    other = next((row for row in results.rows if row.variant == LONGER), None)
    if other is None:
        return
    rows = [row for row in results.rows if row.baseline == other.baseline and row != other]
    found = compare(results, [(row, other) for row in rows], rule)
    if not found:
        return
    factors: dict[str, list[str]] = {}
    for cost in costs(results):
        factors.setdefault(cost.row.key, []).append(f"{cost.factor:.2f}")
    yield Heading(f"Beside {other.label}")
    yield Text(_LONGER.format(times=TIMES_LONGER))
    head = ("method", "cost factor", *_difference_head(results.column_word))
    lines = [
        (c.row.label, ", ".join(factors.get(c.row.key, [])) or numbers.NONE, *_difference(c))
        for c in found
    ]
    caption = f"Row minus {other.label}, percentage points of test top-1, {rule} epoch"
    yield table(caption, head, lines)


def _difference_head(word: str) -> tuple[str, ...]:
    return (f"mean over {word}s", "95 % CI", "paired t test p", "n")


def _difference(found: Comparison | None) -> tuple[str, ...]:
    if found is None:
        return ("", "", "", "")
    pooled = found.pooled
    mean = numbers.fixed(pooled.mean, sign=True)
    return mean, numbers.bounds(pooled), numbers.probability(pooled.p), str(pooled.n)


def _selection(results: Results) -> Iterator[Block]:
    found = choices(results)
    if not found:
        return
    lines = [
        (
            f"{x:g} : {1 - x:.1g}",
            *(numbers.accuracy(c.scores[x]) + (" *" if x == c.x else "") for c in found),
        )
        for x in found[0].scores
    ]
    caption = (
        "Accuracy in % on training images held out for this choice, last epoch: mean ± sample "
        "deviation (n); * marks the weights of cross-entropy and distillation that were chosen"
    )
    yield table(caption, ("weights ce : kd", *(c.column.label for c in found)), lines)
    yield Listing(
        (
            "the held-out images take no part in any training of students here; the teacher may "
            "have seen them, which is the same for all weights",
        )
    )
