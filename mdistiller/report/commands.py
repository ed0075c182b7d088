"""The commands that train what a table of records holds, and no more."""

from __future__ import annotations

import shlex
from pathlib import Path

from mdistiller.experiments.tables import Table, build_table
from mdistiller.experiments.tables.pairs import PAIRS

from .plan import Plan


def commands(plan: Plan, folder: Path, chosen: str) -> list[str]:
    """Lines of shell: what trains these runs, in order, then what reports on them.

    Rows and columns may have different numbers of trials, so that a table can need several lines.
    A row made of another one's numbers comes after it or with it, since it has no more trials.

    Args:
        folder: the folder of records.
        chosen: ID of the settings, empty for those of most runs.
    """
    table = ["--dataset", plan.dataset]
    given = dict(zip(plan.overrides[0::2], plan.overrides[1::2], strict=True))
    options = [word for key in given if key.startswith("--") for word in (key, given[key])]
    settings = [word for key in given if not key.startswith("--") for word in (key, given[key])]
    lines = []
    for trials, selection in _parts(plan):
        words = ["python", "tools/reproduce.py", plan.table, *table, "--trials", str(trials)]
        lines.append([*words, "--record", str(folder), *selection, *options, *settings])
    report = ["python", "tools/report.py", plan.table, *table, "--records", str(folder)]
    lines.append([*report, *(["--settings", chosen] if chosen else [])])
    return [shlex.join(line) for line in lines]


def _parts(plan: Plan) -> list[tuple[int, list[str]]]:
    """Trials, and the arguments that select rows and columns with as many trials or more."""
    whole = build_table(plan.table, plan.dataset)
    usual = [column.key for column in whole.columns]
    columns = [column.key for column in plan.columns]
    # Columns of Figure 2b are methods, which no option selects apart from their rows.
    groups = [[key] for key in columns] if all(key in PAIRS for key in columns) else [columns]
    found: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for group in groups:
        counts: dict[str, int] = {}
        for cell in plan.cells:
            if cell.column in group and cell.runs:
                trials = 1 + max(run.trial for run in cell.runs)
                counts[cell.row] = max(trials, counts.get(cell.row, 0))
        for level in sorted(set(counts.values())):
            rows = tuple(row.key for row in whole.rows if counts.get(row.key, 0) >= level)
            found.setdefault((level, rows), []).extend(group)
    parts = []
    for (level, rows), group in sorted(found.items(), key=lambda item: item[0][0]):
        pairs = ["--pairs", *group] if group != usual and group[0] in PAIRS else []
        parts.append((level, [*pairs, *_methods(whole, rows)]))
    return parts


def _methods(whole: Table, rows: tuple[str, ...]) -> list[str]:
    """--methods and the shortest list of methods and rows that means these rows."""
    if len(rows) == len(whole.rows):
        return []
    by_method: dict[str, list[str]] = {}
    for cell in whole.cells:
        if cell.column == whole.columns[0]:
            by_method.setdefault(cell.method, []).append(cell.row.key)
    names: list[str] = []
    for method, keys in by_method.items():
        wanted = [key for key in keys if key in rows]
        # A row with a method's name cannot be chosen without that method's other rows.
        if wanted == keys or method.casefold() in {key.casefold() for key in wanted}:
            wanted = [method]
        names += wanted
    return ["--methods", *names]
