"""What stands under a table: on what, with what and how its numbers were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mdistiller.experiments.tables.study import LONGER

from . import numbers
from .plan import PRINTED_DATASET, Plan
from .runs import Run


def facts(plan: Plan) -> tuple[str, ...]:
    """One line each, over the complete runs; a value that differs is given with its runs."""
    runs = [run for run in plan.runs if run.state == "done"]
    results = [run.result for run in runs]
    lines = [
        f"data set: {_values(r.get('dataset') for r in results)}",
        f"epochs: {_values(r['epochs'] for r in results)}",
        f"device: {_values(r.get('device') for r in results)}; "
        f"threads a run: {_values(r.get('threads') for r in results)}",
        f"versions: {_values(_versions(r) for r in results)}",
        f"commit: {_values(_commit(r) for r in results)}",
        f"seeds: {_seeds(plan)}",
        "selection: the last epoch needs none; the best epoch is chosen on the test images, so "
        "it is biased upwards and shown for comparison with tables that report it",
        _printed(plan),
    ]
    if fleets := _fleets(runs):
        lines.insert(3, fleets)
    if teachers := _teachers(plan):
        lines.insert(1, f"teachers, test top-1 in %: {teachers}")
    longer = {row.key for row in plan.rows if row.variant == LONGER}
    usual = [run for cell in plan.cells if cell.row not in longer for run in cell.done]
    if len({run.result["epochs"] for run in usual}) > 1:
        lines.append("warning: the runs differ in their epochs; such cells cannot be compared")
    return tuple(lines)


def _fleets(runs: Iterable[Run]) -> str | None:
    """Where times are not those of runs alone."""
    sizes = ["1" if run.fleets == (1,) else " and ".join(map(str, run.fleets)) for run in runs]
    if set(sizes) <= {"1"}:
        return None
    return (
        f"runs in one process: {_values(sizes)}; the time of such a run is that of its own steps "
        "and an equal part of what its process did for all: batches and the teacher"
    )


def _values(values: Iterable[Any]) -> str:
    counts = Counter("unknown" if value is None else str(value) for value in values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{v} ({n} runs)" for v, n in counts.most_common()) or "no complete run"


def _versions(result: dict[str, Any]) -> str | None:
    versions = result.get("versions")
    return ", ".join(f"{k} {v}" for k, v in versions.items()) if versions else None


def _commit(result: dict[str, Any]) -> str | None:
    commit = result.get("commit")
    if not commit:
        return None
    name, *changed = commit.split("-")
    return name[:12] + "".join(f"-{c}" for c in changed)


def _seeds(plan: Plan) -> str:
    trials = sorted({run.trial for run in plan.runs})
    return (
        f"derived from table (the grids count as one), {plan.column_word} and trial, the same "
        f"for a row and its baseline; trials {', '.join(map(str, trials))}; each run's seed is in "
        "report.csv"
    )


def _teachers(plan: Plan) -> str:
    """Each column's teacher, from its own run or else from what the students' runs measured.

    Runs of several machines may have had several teachers, trained by the same settings.
    """
    parts = []
    for column in plan.columns:
        cells = [plan.cell(row, column) for row in plan.rows]
        done = [r.result for cell in cells if cell for r in cell.done]
        measured = {numbers.fixed(r["teacher_top1"]) for r in done if "teacher_top1" in r}
        run = plan.teachers.get(column.key)
        if len(measured) < 2 and run is not None and run.state == "done":
            measured = {numbers.fixed(run.accuracy("last"))}
        if measured:
            parts.append(f"{column.teacher} {' and '.join(sorted(measured))}")
    return ", ".join(dict.fromkeys(parts))


def _printed(plan: Plan) -> str:
    if all(cell.printed is None for cell in plan.cells):
        return "paper: it prints no numbers for these cells"
    if plan.comparable:
        return (
            "paper: its numbers are those printed, of one run or a mean is not said; they are "
            "never mixed with measured ones"
        )
    return (
        f"paper: its numbers are for {PRINTED_DATASET.upper().replace('CIFAR', 'CIFAR-')}, "
        f"another task than {plan.dataset}, so neither they nor differences to them are shown"
    )


def state_lines(runs: Iterable[Run], state: str, root) -> tuple[str, ...]:
    """``folder: reason`` of every run in a state."""
    return tuple(
        f"{run.folder.relative_to(root)}: {run.reason}" for run in runs if run.state == state
    )
