"""The tables of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from mdistiller.config.names import relevant
from mdistiller.experiments.derive import relative_step

from . import numbers
from .comparison import Comparison, costs
from .document import Table, table
from .numbers import or_blank
from .results import PRINTED_DATASET, RULES, Results
from .statistics import HALF_WIDTH, pooled_deviation, spread, trials_needed, trials_to_add

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
# Of report.csv.
RUN_COLUMNS = (
    *("table", "dataset", "row", "method", "variant", "ce_weight", "column", "teacher", "student"),
    *("trial", "seed", "state", "epochs", "last_top1", "best_top1", "best_epoch", "seconds"),
    *("median_epoch_seconds", "device", "threads", "fleet", "torch", "commit", "folder", "reason"),
)
_OF_ROW = {"method": "method", "variant": "variant", "ce_weight": "x"}

# ---- accuracies ------------------------------------------------------------------------------


def accuracy_table(results: Results, rule: str) -> Table:
    """Every cell's measured accuracy; below it, in rows of their own, the paper's and the gap."""
    keys = [column.key for column in results.columns]
    printed = results.comparable and bool(results.printed)
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
        for kind, (values, cells) in kinds.items():
            # Only of a complete row: means over different pairs are not comparable.
            average = or_blank(float(values.mean()), kind == "difference")
            name = row.label if kind == "measured" else ""
            lines.append((name, *[kind] * printed, *cells, *[average] * averaged))
    caption = (
        f"Test top-1 in %, {RULE_TEXT[rule]}: mean ± sample deviation (number of trials n)"
        + ("; paper: printed there, rule not stated; difference: measured − paper" * printed)
    )
    head = ("method", *[""] * printed, *(c.label for c in results.columns))
    words = [f"mean over {results.column_word}s"] * averaged
    return table(caption, (*head, *words), lines, labels=1 + printed)


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


def pooled_table(results: Results, found: Sequence[Comparison], caption: str) -> Table:
    """Per row the mean over the columns, its interval, and both tests."""
    word = results.column_word
    head = (
        *("method", "compared with", f"mean over {word}s", "95 % CI", "df", "paired t test p"),
        *(f"{word}s improved", "trials better / worse / equal", "exact sign test p"),
    )
    lines = [
        (
            *(c.row.label, c.other.label, numbers.fixed(c.pooled.mean, sign=True)),
            *(numbers.bounds(c.pooled), numbers.fixed(c.pooled.df, 1)),
            *(numbers.probability(c.pooled.p), f"{c.improved} of {len(c.intervals)}"),
            f"{c.signs.better} / {c.signs.worse} / {c.signs.equal}",
            numbers.probability(c.signs.p),
        )
        for c in found
    ]
    return table(caption, head, lines, labels=2)


def power_table(results: Results, found: Sequence[Comparison], what: str) -> Table:
    """Per row how wide the interval is, and how many trials a narrow one needs."""
    word = results.column_word
    head = (
        *("method", "compared with", f"trials a {word}", f"mean over {word}s", "half-width"),
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
                numbers.fixed(c.pooled.mean, sign=True),
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


# ---- for other programs ----------------------------------------------------------------------


def runs_csv(results: Results) -> str:
    """Every run, complete or not, then the settings that differ; what is unknown stays empty."""
    runs = results.runs
    rows = pd.DataFrame(map(vars, results.rows)).set_index("key")
    pairs = {column.key: column.pair for column in results.columns}
    frame = runs.assign(
        table=results.name,
        dataset=results.dataset,
        **{k: runs["row"].map(rows[v]) for k, v in _OF_ROW.items()},
        **{k: [getattr(pairs[c], k) for c in runs["column"]] for k in ("teacher", "student")},
        folder=[folder.name for folder in runs["folder"]],
    )[list(RUN_COLUMNS)]
    return _whole_numbers(frame.join(varying(runs))).to_csv(index=False, lineterminator="\n")


def varying(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings in which runs differ, as texts; a column each.

    Without the seed, and without what no result depends on: names, places, logging.
    """
    settings = pd.DataFrame(map(relevant, runs["settings"]), index=runs.index).astype(str)
    differing = [k for k in settings if k != "EXPERIMENT.SEED" and settings[k].nunique() > 1]
    return settings[differing].replace("nan", "")


def _whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers, also where some are missing."""
    counts = ("trial", "seed", "epochs", "best_epoch", "threads", "fleet")
    return frame.astype(dict.fromkeys(counts, "Int64"))


def cells_csv(results: Results) -> str:
    """Every cell: measured figures and the paper's, each in a column of its own."""
    done = results.done.groupby(["row", "column"])
    frame = pd.DataFrame(_places(results), columns=["row", "column"])
    frame.insert(0, "table", results.name)
    frame.insert(1, "dataset", results.dataset)
    measured = done.agg(
        n=("trial", "size"),
        **{
            f"{rule}_{name}": (f"{rule}_top1", how)
            for rule in RULES
            for name, how in (("mean", "mean"), ("deviation", "std"))
        },
    )
    frame = frame.join(measured, on=["row", "column"])
    frame["n"] = frame["n"].fillna(0).astype(int)
    paper = [results.printed.get(place) for place in _places(results)]
    frame["paper"] = pd.Series(paper, dtype=float)
    frame["paper_dataset"] = [None if x is None else PRINTED_DATASET for x in paper]
    for rule in RULES:
        gap = frame[f"{rule}_mean"] - frame["paper"]
        frame[f"{rule}_minus_paper"] = gap if results.comparable else None
    return frame.to_csv(index=False, lineterminator="\n")


def _places(results: Results) -> Iterable[tuple[str, str]]:
    places = results.runs[["row", "column"]].drop_duplicates()
    return list(places.itertuples(index=False, name=None))
