"""On what, with what and how the numbers of a report were made: once, for all its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mdistiller.experiments.tables.study import LONGER

from . import numbers
from .results import FOLDERS, PRINTED_DATASET, Results


def facts(results: Results) -> tuple[str, ...]:
    """One line each, over the complete runs; a value that differs is given with its runs."""
    done = results.done
    lines = [
        f"data set: {_values(done['dataset'])}",
        _teachers(results),
        f"epochs: {_values(done['epochs'].astype(int))}",
        _alpha(done),
        _fleets(done),
        f"device: {_values(done['device'])}; threads a run: {_values(done['threads'])}",
        f"versions: {_values(done['versions'])}",
        f"commit: {_values(map(_commit, done['commit']))}",
        _seeds(results),
        "selection: the last epoch needs none; the best epoch is chosen on the test images, so "
        "it is biased upwards and shown for comparison with tables that report it",
        _printed(results),
    ]
    longer = [row.key for row in results.rows if row.variant == LONGER]
    if done[~done["row"].isin(longer)]["epochs"].nunique() > 1:
        lines.append("warning: the runs differ in their epochs; such cells cannot be compared")
    return tuple(filter(None, lines))


def _values(values: Iterable[Any]) -> str:
    counts = Counter("unknown" if pd.isna(value) else str(value) for value in values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{v} ({n} runs)" for v, n in counts.most_common()) or "no complete run"


def _alpha(done: pd.DataFrame) -> str:
    """Tables can set it, and its default has changed: what the runs had is in no command."""
    own = done[done["trainer"] == "crossbatch"]
    found = _values(settings.get("CROSSBATCH.ALPHA") for settings in own["settings"])
    return f"cross-batch weighting: CROSSBATCH.ALPHA {found}" if len(own) else ""


def _fleets(done: pd.DataFrame) -> str:
    """Where times are not those of runs alone."""
    sizes = [" and ".join(map(str, fleets)) for fleets in done["fleets"]]
    if set(sizes) <= {"1"}:
        return ""
    return (
        f"runs in one process: {_values(sizes)}; the time of such a run is that of its own steps "
        "and an equal part of what its process did for all: batches and the teacher"
    )


def _commit(commit: str | None) -> str | None:
    if not commit:
        return None
    name, *changed = commit.split("-")
    return "-".join((name[:12], *changed))


def _seeds(results: Results) -> str:
    if results.name == FOLDERS:
        return "seeds: those of the runs; runs of one seed are paired"
    trials = ", ".join(map(str, sorted(results.runs["trial"].unique())))
    return (
        f"seeds: derived from table (the grids count as one), {results.column_word} and trial, the "
        f"same for a row and its baseline; trials {trials}; each run's seed is in report.csv"
    )


def _teachers(results: Results) -> str:
    """Each column's teacher, as the students' runs measured it.

    Runs of several machines may have had several teachers, trained by the same settings.
    """
    measured = results.done.dropna(subset="teacher_top1")
    parts = []
    for column in results.columns:
        own = measured[measured["column"] == column.key]["teacher_top1"]
        if found := sorted({numbers.fixed(value) for value in own}):
            parts.append(f"{column.pair.teacher} {' and '.join(found)}")
    return f"teachers, test top-1 in %: {', '.join(dict.fromkeys(parts))}" if parts else ""


def _printed(results: Results) -> str:
    if results.published and results.comparable:
        return (
            "published: other papers' numbers, each with its protocol in a table of its own; they "
            "are never mixed with measured ones, and no difference to them is a test of a method"
        )
    if not (results.printed or results.published):
        return "paper: it prints no numbers for these cells"
    if results.comparable:
        return (
            "paper: its numbers are those printed, of one run or a mean is not said; they are "
            "never mixed with measured ones"
        )
    return (
        f"paper: the numbers are for {PRINTED_DATASET.upper().replace('CIFAR', 'CIFAR-')}, "
        f"another task than {results.dataset}, so neither they nor differences to them are shown"
    )
