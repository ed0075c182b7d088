"""What the study's grids have beyond other tables: a choice on held-out images, and controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mdistiller.experiments.study_layouts import (
    BEST_FIXED,
    CONTROL,
    RULES_OUT,
    SELECTION,
    SOURCE,
)

from . import numbers
from .comparison import at_equal_epochs, compare_rows
from .document import Block, Heading, Listing, Table, Text
from .plan import Cell, Column, Plan, Row
from .statistics import Spread, spread

_CONTROLS = (
    "Each control takes one thing away that the weighting has. The difference is {source} minus "
    "the control, paired by trial. What the second column names is ruled out as the explanation of "
    "a gain where the interval is above zero, and remains possible where it is not."
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


def choices(plan: Plan) -> list[Choice]:
    """For every column in which all weights were tried on held-out images, by their last epoch."""
    rows = [row for row in plan.rows if row.variant == SELECTION]
    found = []
    for column in plan.columns:
        scores = {
            row.x: spread([run.accuracy("last") for run in plan.done(row, column)]) for row in rows
        }
        if scores and None not in scores.values():
            best = max(scores, key=lambda x: (scores[x].mean, -x))
            found.append(Choice(column, best, scores))
    return found


def tested(plan: Plan) -> Plan:
    """The plan without runs on held-out images, and with a row of the weights they chose.

    What the runs of :data:`SELECTION` rows call test accuracy is that on held-out images.
    """
    rows = [row for row in plan.rows if row.variant != SELECTION]
    if len(rows) == len(plan.rows):
        return plan
    kept = {row.key for row in rows}
    cells = [cell for cell in plan.cells if cell.row in kept]
    by_weight = {row.x: row for row in rows if row.x is not None}
    chosen = [(c, by_weight[c.x]) for c in choices(plan) if c.x in by_weight]
    if chosen:
        label = "control 5: KD, best fixed weights"
        baseline = next((r.baseline for r in rows if r.baseline), None)
        rows.append(Row(BEST_FIXED, label, "KD", CONTROL, baseline, None))
        cells += [
            Cell(BEST_FIXED, choice.column.key, None, plan.done(row, choice.column))
            for choice, row in chosen
        ]
    return replace(plan, rows=tuple(rows), cells=tuple(cells))


def controls(plan: Plan, rules: list[str]) -> Iterator[Block]:
    """The controls, with what each of them rules out; nothing where there are none.

    Args:
        plan: with the runs on held-out images.
        rules: selection rules, of which the first is used.
    """
    part = tested(plan)
    rows = {row.key: row for row in part.rows}
    present = [rows[key] for key in RULES_OUT if key in rows]
    if SOURCE not in rows or not present:
        return
    source, rule = rows[SOURCE], rules[0]
    turned = [replace(source, key=f"{SOURCE} / {row.key}", baseline=row.key) for row in present]
    cells = [
        replace(cell, row=row.key) for row in turned for cell in part.cells if cell.row == SOURCE
    ]
    asked = replace(part, rows=(*part.rows, *turned), cells=(*part.cells, *cells))
    found = {
        c.baseline.key: c for c in compare_rows(asked, at_equal_epochs(rule)) if c.row in turned
    }
    lines = []
    for row in present:
        entry = found.get(row.key)
        numbers_of = ("", "", "", "")
        if entry is not None:
            numbers_of = (
                numbers.fixed(entry.pooled.mean, sign=True),
                numbers.bounds(entry.pooled),
                numbers.probability(entry.pooled.p),
                str(entry.pooled.n),
            )
        lines.append((row.label, RULES_OUT[row.key], *numbers_of))
    word = plan.column_word
    head = ("control", "rules out", f"mean over {word}s", "95 % CI", "paired t test p", "n")
    yield Heading("Controls")
    yield Text(_CONTROLS.format(source=source.label))
    caption = f"{source.label} minus control, percentage points of test top-1, {rule} epoch"
    yield Table(caption, head, tuple(lines), labels=2)
    yield from _selection(plan)


def _selection(plan: Plan) -> Iterator[Block]:
    found = choices(plan)
    if not found:
        return
    weights = list(found[0].scores)
    rows = tuple(
        (f"{x:g} : {1 - x:.1g}", *(_score(choice, x) for choice in found)) for x in weights
    )
    caption = (
        "Accuracy in % on training images held out for this choice, last epoch: mean ± sample "
        "deviation (n); * marks the weights of cross-entropy and distillation that were chosen"
    )
    yield Table(caption, ("weights ce : kd", *(c.column.label for c in found)), rows)
    yield Listing(
        (
            "the held-out images take no part in any training of students here; the teacher may "
            "have seen them, which is the same for all weights",
        )
    )


def _score(choice: Choice, x: float) -> str:
    return numbers.accuracy(choice.scores[x]) + (" *" if x == choice.x else "")
