"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from . import numbers
from .comparison import Comparison, Cost
from .document import Table
from .plan import Column, Plan, Row
from .power import HALF_WIDTH, half_width, pooled_deviation, trials_needed, trials_to_add
from .statistics import spread

RULE_TEXT = {
    "last": "last epoch",
    "best": "best epoch, chosen on the test images themselves",
}


def accuracy_table(plan: Plan, rule: str) -> Table:
    """Every cell's measured accuracy; below it, in rows of their own, the paper's and the gap."""
    printed = plan.comparable and any(cell.printed is not None for cell in plan.cells)
    rows, kinds = [], []
    for row in plan.rows:
        for kind, cells in _lines(plan, row, rule, printed):
            name = row.label if kind == "measured" else ""
            rows.append((name, kind, *cells) if printed else (name, *cells))
            kinds.append(kind)
    caption = (
        f"Test top-1 in %, {RULE_TEXT[rule]}: mean ± sample deviation (number of trials n)"
        + ("; paper: printed there, rule not stated; difference: measured − paper" * printed)
    )
    words = [f"mean over {plan.column_word}s"] * _averaged(plan)
    head = ("method", *([""] * printed), *(c.label for c in plan.columns), *words)
    return Table(caption, head, tuple(rows), labels=1 + printed, kinds=tuple(kinds))


def _lines(plan: Plan, row: Row, rule: str, printed: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The lines of one row; of several columns the last entry is the mean over them."""
    spreads = [spread([r.accuracy(rule) for r in plan.done(row, c)]) for c in plan.columns]
    means = [s.mean if s else None for s in spreads]
    average = _average(means)
    yield "measured", (*map(numbers.accuracy, spreads), *[_blank(average)] * _averaged(plan))
    if not printed:
        return
    cells = [plan.cell(row, column) for column in plan.columns]
    paper = [cell.printed if cell else None for cell in cells]
    gaps = [None if m is None or p is None else m - p for m, p in zip(means, paper, strict=True)]
    for kind, values in (("paper", paper), ("difference", gaps)):
        sign = kind == "difference"
        average = [_blank(_average(values), sign)] * _averaged(plan)
        yield kind, (*(_blank(v, sign) for v in values), *average)


def _averaged(plan: Plan) -> bool:
    """Of one column the mean over columns would say the same twice."""
    return len(plan.columns) > 1


def _average(values: Sequence[float | None]) -> float | None:
    """Only of a complete row: means over different pairs are not comparable."""
    return None if not values or None in values else fmean(values)


def _blank(value: float | None, sign: bool = False) -> str:
    return "" if value is None else numbers.fixed(value, sign=sign)


def difference_table(plan: Plan, found: Sequence[Comparison], caption: str) -> Table:
    """Per row and column the mean paired difference, its interval and n."""
    rows = tuple((c.row.label, *(_difference(c, column) for column in plan.columns)) for c in found)
    head = ("method", *(column.label for column in plan.columns))
    return Table(caption, head, rows)


def _difference(comparison: Comparison, column: Column) -> str:
    interval = comparison.intervals.get(column.key)
    if interval is None:
        return ""
    mean = numbers.fixed(interval.mean, sign=True)
    return f"{mean} ({interval.n})\n{numbers.bounds(interval)}"


def pooled_table(plan: Plan, found: Sequence[Comparison], caption: str) -> Table:
    """Per row the mean over the columns, its interval, and both tests."""
    word = plan.column_word
    head = (
        *("method", "compared with", f"mean over {word}s", "95 % CI", "df", "paired t test p"),
        *(f"{word}s improved", "trials better / worse / equal", "exact sign test p"),
    )
    rows = tuple(
        (
            c.row.label,
            c.baseline.label,
            numbers.fixed(c.pooled.mean, sign=True),
            numbers.bounds(c.pooled),
            numbers.fixed(c.pooled.df, 1),
            numbers.probability(c.pooled.p),
            f"{c.improved} of {len(c.intervals)}",
            f"{c.signs.better} / {c.signs.worse} / {c.signs.equal}",
            numbers.probability(c.signs.p),
        )
        for c in found
    )
    return Table(caption, head, rows, labels=2)


def power_table(plan: Plan, found: Sequence[Comparison], what: str) -> Table:
    """Per row how wide the interval is, and how many trials a narrow one needs."""
    word = plan.column_word
    head = (
        *("method", "compared with", f"trials a {word}", f"mean over {word}s", "half-width"),
        *("deviation", f"trials a {word} for {HALF_WIDTH}", "or, added where they tell most"),
    )
    rows = []
    for c in found:
        groups = list(c.differences.values())
        counts = sorted({len(g) for g in groups})
        several = min(counts) > 1
        rows.append(
            (
                *(c.row.label, c.baseline.label, "-".join(map(str, counts))),
                numbers.fixed(c.pooled.mean, sign=True),
                numbers.fixed(half_width(c.pooled)),
                numbers.fixed(pooled_deviation(groups) if several else None),
                str(trials_needed(groups) or numbers.NONE),
                " + ".join(map(str, trials_to_add(groups) or (numbers.NONE,))),
            )
        )
    caption = (
        f"Half-width of the 95 % interval, {what}, and the number of trials with which it is "
        f"expected to be at most {HALF_WIDTH}, if the deviation of the differences stays as it is"
    )
    return Table(caption, head, tuple(rows), labels=2)


def cost_table(plan: Plan, found: Sequence[Cost]) -> Table:
    """Cost factors by row and column, with the times behind them and what they leave."""
    cells = {(cost.row.key, cost.column.key): _cost(cost) for cost in found}
    rows = tuple(
        (row.label, *(cells.get((row.key, column.key), "") for column in plan.columns))
        for row in plan.rows
        if any(key[0] == row.key for key in cells)
    )
    caption = (
        "Cost factor (n): median training time of an epoch over that of the baseline in the same "
        "runs, on the same device and threads and with the same sharing; below it both times, and "
        "the share of its epochs that the slower run had completed at equal time"
    )
    return Table(caption, ("method", *(column.label for column in plan.columns)), rows)


def _cost(cost: Cost) -> str:
    mine, theirs = map(numbers.duration, cost.seconds)
    return f"{cost.factor:.2f} ({cost.n})\n{mine} : {theirs}, {100 * cost.reached:.0f} %"


def state_table(plan: Plan) -> Table:
    """How many runs of each row are in which state."""
    totals = plan.states
    rows = []
    for row in plan.rows:
        cells = [plan.cell(row, column) for column in plan.columns]
        states = [run.state for cell in cells if cell for run in cell.runs]
        rows.append((row.label, *(str(states.count(s) or "") for s in totals)))
    rows.append(("all", *(str(n) for n in totals.values())))
    return Table("Runs by state", ("method", *totals), tuple(rows))
