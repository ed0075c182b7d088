"""The tables of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mdistiller.experiments.derive import relative_step
from mdistiller.experiments.tables.published import PROTOCOL, UNTRAINED, Number

from . import numbers
from .comparison import Comparison, costs
from .document import Table, table
from .numbers import or_blank
from .results import Results
from .statistics import HALF_WIDTH, Interval, pooled_deviation, spread, trials_needed, trials_to_add

RULE_TEXT = {
    "last": "last epoch",
    "best": "best epoch, chosen on the test images themselves",
}
WEIGHTS = (("ce", "weight of ce"), ("kd", "weight of kd"))
COSINES = (
    ("c_ce", "cos(ce, ref)"),
    ("c_kd", "cos(kd, ref)"),
    ("c_12", "cos(ce, kd)"),
    ("conflict", "share of conflicts"),
)
STEP = "steps, times plain ones"
_STEPS = (
    "; steps: the sum of learning rate times length of the update, over the same sum for the "
    "update of plain training at the same places"
)
_PROTOCOLS = (
    "Published numbers, each with its protocol. Those of other epochs or more views than a "
    "measured row's must not stand beside it; of 240 epochs the best on the test images is reported"
)

# ---- accuracies ------------------------------------------------------------------------------


def accuracy_table(results: Results, rule: str) -> Table:
    """Every cell's measured accuracy; below it, in rows of their own, the paper's and the gap."""
    keys = [column.key for column in results.columns]
    printed = results.comparable and bool(results.printed)
    published = results.comparable and bool(results.published)
    several = printed or published
    # Of one column the mean over columns would say the same twice.
    averaged = len(keys) > 1
    lines = []
    for row in results.rows:
        spreads = [spread(results.top1(row.key, key, rule)) for key in keys]
        means = np.array([s.mean if s else np.nan for s in spreads])
        paper = np.array([results.printed.get((row.key, key), np.nan) for key in keys])
        kinds: dict[str, tuple[np.ndarray, Iterable[str]]] = {
            "measured": (means, map(numbers.accuracy, spreads))
        }
        if printed:
            gaps = means - paper
            kinds["paper"] = paper, map(or_blank, paper)
            kinds["difference"] = gaps, (or_blank(gap, sign=True) for gap in gaps)
        if published and row.key in results.published:
            known = results.published[row.key]
            kinds["published"] = paper, (_with_mark(known.get(key)) for key in keys)
        for kind, (values, cells) in kinds.items():
            # Only of a complete row: means over different pairs are not comparable.
            average = or_blank(float(values.mean()), kind == "difference")
            name = row.label if kind == "measured" else ""
            lines.append((name, *[kind] * several, *cells, *[average] * averaged))
    caption = (
        f"Test top-1 in %, {RULE_TEXT[rule]}: mean ± sample deviation (number of trials n)"
        + ("; paper: printed there, rule not stated; difference: measured − paper" * printed)
        + ("; published: by other papers, see their protocols below" * published)
    )
    head = ("method", *[""] * several, *(c.label for c in results.columns))
    words = [f"mean over {results.column_word}s"] * averaged
    return table(caption, (*head, *words), lines, labels=1 + several)


def _with_mark(number: Number | None) -> str:
    """A published number, and below it what is not the usual budget."""
    if number is None:
        return ""
    return "\n".join(filter(None, (numbers.fixed(number.top1), number.mark)))


def protocol_table(results: Results) -> Table | None:
    """Every published number with its protocol; None where there is none for this data set."""
    if not (results.comparable and results.published):
        return None
    labels = {row.key: row.label for row in results.rows} | UNTRAINED
    lines = [
        (label, column.label, numbers.fixed(number.top1), *number.protocol)
        for key, label in labels.items()
        for column in results.columns
        if (number := results.published.get(key, {}).get(column.key))
    ]
    head = ("method", results.column_word, "top-1 in %", *PROTOCOL)
    return table(_PROTOCOLS, head, lines, labels=2)


def state_table(results: Results) -> Table:
    """How many runs of each row are in which state."""
    totals = results.states
    counts = Counter(zip(results.runs["row"], results.runs["state"], strict=True))
    lines = [
        (row.label, *(str(counts[row.key, state] or "") for state in totals))
        for row in results.rows
    ]
    lines.append(("all", *map(str, totals.values())))
    return table("Runs by state", ("method", *totals), lines)


# ---- differences -----------------------------------------------------------------------------


def difference_table(results: Results, found: Sequence[Comparison], caption: str) -> Table:
    """Per row and column the mean paired difference, its interval and n."""

    def cell(interval) -> str:
        if interval is None:
            return ""
        mean = numbers.fixed(interval.mean, sign=True)
        return f"{mean} ({interval.n})\n{numbers.bounds(interval)}"

    lines = [
        (c.row.label, *(cell(c.intervals.get(column.key)) for column in results.columns))
        for c in found
    ]
    return table(caption, ("method", *(column.label for column in results.columns)), lines)


def verdict_table(results: Results, found: Mapping[str, Sequence[Comparison]]) -> Table:
    """Per row what it does to the accuracy, in a word and in numbers, and what it costs.

    Args:
        found: the comparisons by selection rule; the first rule decides the word.
    """
    first, *others = found
    factors: dict[str, list[float]] = {}
    for cost in costs(results):
        factors.setdefault(cost.row.key, []).append(cost.factor)
    head = ["method", "compared with", "verdict", "difference", "95 % CI", "trials"]
    for rule in others:
        head += [f"{rule} epoch", f"{rule} epoch: 95 % CI"]
    head += ["times the time"] * bool(factors)
    lines = []
    for number, c in enumerate(found[first]):
        line = [c.row.label, c.other.label, _verdict(c.pooled), *_estimate(c), str(c.pooled.n)]
        for rule in others:
            line += _estimate(found[rule][number])
        spans = sorted({f"{factor:.2f}" for factor in factors.get(c.row.key, [])}, key=float)
        line += [" to ".join(dict.fromkeys((*spans[:1], *spans[-1:])))] * bool(factors)
        lines.append(line)
    caption = f"Mean paired difference, percentage points of test top-1, {RULE_TEXT[first]}"
    if others:
        caption += "".join(f"; beside it: {RULE_TEXT[rule]}" for rule in others)
    return table(caption, head, lines, labels=3)


def _verdict(interval: Interval) -> str:
    if np.isnan(interval.low):
        return "one trial"
    if interval.low > 0 or interval.high < 0:
        return "better" if interval.mean > 0 else "worse"
    return "no difference shown"


def _estimate(comparison: Comparison) -> tuple[str, str]:
    mean = numbers.fixed(comparison.pooled.mean, sign=True)
    return mean, numbers.bounds(comparison.pooled)


def tests_table(results: Results, found: Sequence[Comparison], what: str) -> Table:
    """Per row both tests of its mean difference."""
    word = results.column_word
    head = (
        *("method", "compared with", "df", "paired t test p", f"{word}s improved"),
        *("trials better / worse / equal", "exact sign test p"),
    )
    lines = [
        (
            *(c.row.label, c.other.label, numbers.fixed(c.pooled.df, 1)),
            *(numbers.probability(c.pooled.p), f"{c.improved} of {len(c.intervals)}"),
            f"{c.signs.better} / {c.signs.worse} / {c.signs.equal}",
            numbers.probability(c.signs.p),
        )
        for c in found
    ]
    return table(f"Tests of the mean differences, {what}", head, lines, labels=2)


def power_table(results: Results, found: Sequence[Comparison], what: str) -> Table:
    """Per row how wide the interval is, and how many trials a narrow one needs."""
    word = results.column_word
    head = (
        *("method", "compared with", f"trials a {word}", "half-width"),
        *("deviation", f"trials a {word} for {HALF_WIDTH}", "or, added where they tell most"),
    )
    lines = []
    for c in found:
        groups = list(c.differences.values())
        counts = sorted({len(g) for g in groups})
        deviation = pooled_deviation(groups) if min(counts) > 1 else None
        lines.append(
            (
                *(c.row.label, c.other.label, "-".join(map(str, counts))),
                *(numbers.fixed(c.pooled.half_width), numbers.fixed(deviation)),
                str(trials_needed(groups) or numbers.NONE),
                " + ".join(map(str, trials_to_add(groups) or (numbers.NONE,))),
            )
        )
    caption = (
        f"Half-width of the 95 % interval, {what}, and the number of trials with which it is "
        f"expected to be at most {HALF_WIDTH}, if the deviation of the differences stays as it is"
    )
    return table(caption, head, lines, labels=2)


def cost_table(results: Results) -> Table | None:
    """Cost factors by row and column, with the times behind them."""
    cells = {
        (cost.row.key, cost.column.key): f"{cost.factor:.2f} ({cost.n})\n"
        + " : ".join(map(numbers.duration, cost.seconds))
        for cost in costs(results)
    }
    columns = results.columns
    lines = [
        (row.label, *(cells.get((row.key, column.key), "") for column in columns))
        for row in results.rows
        if any(key[0] == row.key for key in cells)
    ]
    caption = (
        "Cost factor (n): median training time of an epoch over that of the baseline in the same "
        "runs, on the same device and threads and with the same sharing; below it both times"
    )
    head = ("method", *(column.label for column in columns))
    return table(caption, head, lines) if lines else None


# ---- weights and gradients -------------------------------------------------------------------


def dynamics_tables(results: Results) -> Iterator[Table]:
    """For every column the least, the greatest and the last epoch mean of each quantity.

    And how long the steps were. Rows and quantities that no run has logged are left out.
    """
    for column in results.columns:
        found: dict[str, dict[str, str]] = {}
        for row in results.rows:
            line = {
                name: _span(values.mean(axis=0))
                for key, name in (*WEIGHTS, *COSINES)
                if (values := results.curves(row.key, column.key, key)) is not None
            }
            steps = map(relative_step, results.cell(row.key, column.key)["history"])
            if known := [step for step in steps if step is not None]:
                line[STEP] = numbers.fixed(float(np.mean(known)))
            if line:
                found[row.label] = line
        names = [n for _, n in (*WEIGHTS, *COSINES) if any(n in line for line in found.values())]
        names += [STEP] * any(STEP in line for line in found.values())
        caption = (
            f"{column.label}: least to greatest epoch mean, then that of the last epoch; weights "
            "as they multiply the configured losses, mean over trials" + _STEPS * (STEP in names)
        )
        if found:
            lines = [(row, *(line.get(n, "") for n in names)) for row, line in found.items()]
            yield table(caption, ("method", *names), lines)


def _span(values: np.ndarray) -> str:
    """Of one quantity [epochs]."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return ""
    low, high, last = (numbers.fixed(float(v)) for v in (known.min(), known.max(), known[-1]))
    return f"{low} to {high},\nlast {last}"
