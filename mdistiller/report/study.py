"""What the study's grids have beyond other tables: a choice on held-out images, and controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

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
from .comparison import Comparison, at_equal_epochs, compare_rows, costs
from .document import Block, Heading, Listing, Table, Text
from .plan import Cell, Column, Plan, Row
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
    tables = [table for key in RULES_OUT_OF for table in _controls_of(part, key, rules[0])]
    if not tables:
        return
    yield Heading("Controls")
    yield Text(_CONTROLS)
    yield from tables
    yield from _selection(plan)


def _controls_of(plan: Plan, key: str, rule: str) -> Iterator[Table]:
    """The row ``key`` minus each of its controls, if there are any."""
    source, present = _source_and(plan, key, RULES_OUT_OF[key])
    if source is None or not present:
        return
    found = _differences(plan, [(source, row) for row in present], rule)
    lines = tuple(
        (row.label, RULES_OUT_OF[key][row.key], *_difference(found.get((key, row.key))))
        for row in present
    )
    head = ("control", "rules out", *_difference_head(plan.column_word))
    caption = f"{source.label} minus control, percentage points of test top-1, {rule} epoch"
    yield Table(caption, head, lines, labels=2)


def readings(plan: Plan, rules: list[str]) -> Iterator[Block]:
    """The other readings against the shipped one, and whether it should give way to one of them.

    Args:
        rules: selection rules, of which the first is used.
    """
    source, present = _source_and(plan, SOURCE, CANDIDATES)
    if source is None or not present:
        return
    rule = rules[0]
    found = _differences(plan, [(row, source) for row in present], rule)
    adjusted = holm([entry.pooled.p for entry in found.values()])
    judged = list(zip(found.values(), adjusted, strict=True))
    yield Heading("Readings")
    yield Text(_READINGS.format(source=source.label, level=1 - LEVEL))
    lines = tuple(
        (entry.row.label, *_difference(entry), numbers.probability(p)) for entry, p in judged
    )
    head = ("reading", *_difference_head(plan.column_word), "Holm's p")
    caption = f"Reading minus {source.label}, percentage points of test top-1, {rule} epoch"
    yield Table(caption, head, lines)
    better = [
        (entry.pooled.mean, entry.row.label)
        for entry, p in judged
        if entry.pooled.mean > 0 and p < 1 - LEVEL
    ]
    verdict = f"{max(better)[1]} should take its place" if better else "the shipped one stays"
    yield Listing((f"by the rule, {verdict}",))


def longer(plan: Plan, rules: list[str]) -> Iterator[Block]:
    """Weightings against KD that is trained for about as long as they are.

    Args:
        rules: selection rules, of which the first is used.
    """
    other = next((row for row in plan.rows if row.variant == LONGER), None)
    if other is None:
        return
    rule = rules[0]
    rows = [row for row in plan.rows if row.baseline == other.baseline and row != other]
    found = _differences(plan, [(row, other) for row in rows], rule)
    if not found:
        return
    factors: dict[str, list[str]] = {}
    for cost in costs(plan):
        factors.setdefault(cost.row.key, []).append(f"{cost.factor:.2f}")
    yield Heading(f"Beside {other.label}")
    yield Text(_LONGER.format(times=TIMES_LONGER))
    head = ("method", "cost factor", *_difference_head(plan.column_word))
    lines = tuple(
        (entry.row.label, ", ".join(factors.get(key, [])) or numbers.NONE, *_difference(entry))
        for (key, _), entry in found.items()
    )
    caption = f"Row minus {other.label}, percentage points of test top-1, {rule} epoch"
    yield Table(caption, head, lines)


def _source_and(plan: Plan, source: str, keys: Iterable[str]) -> tuple[Row | None, list[Row]]:
    """The row ``source``, and those of the rows ``keys`` that the plan has, in order."""
    rows = {row.key: row for row in plan.rows}
    return rows.get(source), [rows[key] for key in keys if key in rows]


def _differences(
    plan: Plan, wanted: list[tuple[Row, Row]], rule: str
) -> dict[tuple[str, str], Comparison]:
    """Comparisons of pairs of rows that need not be each other's baselines, by their keys."""
    turned = {f"{row.key} / {other.key}": (row, other.key) for row, other in wanted}
    rows = [replace(row, key=key, baseline=other) for key, (row, other) in turned.items()]
    cells = [
        replace(cell, row=key)
        for key, (row, _) in turned.items()
        for cell in plan.cells
        if cell.row == row.key
    ]
    asked = replace(plan, rows=(*plan.rows, *rows), cells=(*plan.cells, *cells))
    return {
        (turned[c.row.key][0].key, turned[c.row.key][1]): c
        for c in compare_rows(asked, at_equal_epochs(rule))
        if c.row.key in turned
    }


def _difference_head(word: str) -> tuple[str, ...]:
    return (f"mean over {word}s", "95 % CI", "paired t test p", "n")


def _difference(found: Comparison | None) -> tuple[str, ...]:
    if found is None:
        return ("", "", "", "")
    pooled = found.pooled
    mean = numbers.fixed(pooled.mean, sign=True)
    return mean, numbers.bounds(pooled), numbers.probability(pooled.p), str(pooled.n)


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
