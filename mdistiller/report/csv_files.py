"""The report's numbers for other programs: one line per run, and one per cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from .plan import PRINTED_DATASET, Cell, Column, Plan, Row
from .runs import Run
from .statistics import Spread, spread

RUN_COLUMNS = (
    *("table", "dataset", "row", "method", "variant", "ce_weight", "column", "teacher", "student"),
    *("trial", "seed", "state", "epochs", "last_top1", "best_top1", "best_epoch", "seconds"),
    *("median_epoch_seconds", "device", "threads", "fleet", "torch", "commit", "folder", "reason"),
)
CELL_COLUMNS = (
    *("table", "dataset", "row", "column", "n", "last_mean", "last_deviation", "best_mean"),
    *("best_deviation", "paper", "paper_dataset", "last_minus_paper", "best_minus_paper"),
)


def runs_csv(plan: Plan) -> str:
    """Every run of the plan, complete or not; what is not known stays empty."""
    return _write(
        RUN_COLUMNS,
        ((plan.table, plan.dataset, *_run(*place, run)) for *place, run in _walk(plan)),
    )


def _walk(plan: Plan) -> Iterable[tuple[Row, Column, Run]]:
    for row, column, cell in _cells(plan):
        for run in cell.runs:
            yield row, column, run


def _cells(plan: Plan) -> Iterable[tuple[Row, Column, Cell]]:
    for row in plan.rows:
        for column in plan.columns:
            if cell := plan.cell(row, column):
                yield row, column, cell


def _run(row: Row, column: Column, run: Run) -> tuple[Any, ...]:
    result = run.result
    seconds = run.curve("seconds") if run.state == "done" else ()
    return (
        *(row.key, row.method, row.variant, row.x, column.key, column.teacher, column.student),
        *(run.trial, run.seed, run.state),
        *(result.get(k) for k in ("epochs", "last_top1", "best_top1", "best_epoch", "seconds")),
        median(map(float, seconds)) if len(seconds) else None,
        *(result.get(k) for k in ("device", "threads", "fleet")),
        (result.get("versions") or {}).get("torch"),
        result.get("commit"),
        run.folder.name,
        run.reason,
    )


def cells_csv(plan: Plan) -> str:
    """Every cell: measured figures and the paper's, each in a column of its own."""
    return _write(
        CELL_COLUMNS,
        ((plan.table, plan.dataset, *_cell(plan, *place)) for place in _cells(plan)),
    )


def _cell(plan: Plan, row: Row, column: Column, cell: Cell) -> tuple[Any, ...]:
    last, best = (spread([run.accuracy(rule) for run in cell.done]) for rule in ("last", "best"))
    printed = cell.printed
    gaps = [
        s.mean - printed if s and plan.comparable and printed is not None else None
        for s in (last, best)
    ]
    return (
        *(row.key, column.key, len(cell.done), *_numbers(last), *_numbers(best), printed),
        *(None if printed is None else PRINTED_DATASET, *gaps),
    )


def _numbers(values: Spread | None) -> tuple[float | None, float | None]:
    if values is None:
        return None, None
    return values.mean, values.deviation if values.n > 1 else None


def _write(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
