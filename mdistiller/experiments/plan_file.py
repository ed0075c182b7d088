"""``plan.json``: what the runs below a folder are, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mdistiller.engine.rundir.folder import claim
from mdistiller.errors import DataError

from .job import write_json
from .plan import Plan, cell_opts, relative_folder, request_opts
from .tables import Row, Table, build_table
from .tables.pairs import PAIRS, PAPERS_DATASET

FILE = "plan.json"


def save_plan(plan: Plan) -> list[str]:
    """Write plan.json, together with the cells and trials that earlier calls had planned.

    A cell whose overrides have changed is replaced, for its earlier runs are no trials of it.

    Returns:
        Remarks for the user.
    """
    root = plan.request.root
    # Two calls at the same time must not lose each other's cells.
    with claim(root / ".claims" / FILE, wait=True):
        new = describe_plan(plan)
        old = load_plan(root)
        if old is None:
            write_json(root / FILE, new)
            return []
        merged, remarks = _merge(old, new)
        write_json(root / FILE, merged)
    return remarks


def load_plan(root: Path) -> dict[str, Any] | None:
    """The contents of plan.json; None if there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = root / FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); move it away") from None


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON types; folders as seen from the plan's own."""
    table, root = plan.table, plan.request.root
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for run in plan.runs:
        cell = run.cell
        entry = cells.setdefault(
            (cell.row.key, cell.column.key),
            {
                "row": cell.row.key,
                "column": cell.column.key,
                "printed": cell.printed,
                "cfg_file": cell.cfg_file,
                "opts": list(cell_opts(plan.request, cell)),
                "overrides": list(request_opts(plan.request, cell)),
                "runs": [],
            },
        )
        folder = relative_folder(run.job, root)
        entry["runs"].append({"trial": run.trial, "seed": run.seed, "folder": folder})
    return {
        "table": table.name,
        "title": table.title,
        "dataset": table.dataset,
        "kind": table.kind,
        "rows": [_row(row) for row in table.rows],
        "columns": _columns(table),
        "cells": _ordered(table, list(cells.values())),
        "teachers": [
            {"column": column.key, "folder": relative_folder(plan.teachers[name], root)}
            for column in table.columns
            if (name := column.pair.teacher) in plan.teachers
        ],
        "averages": table.averages,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        key: getattr(row, key) for key in ("key", "label", "method", "variant", "baseline", "x")
    }


def _columns(table: Table) -> list[dict[str, str]]:
    return [
        {
            "key": c.key,
            "teacher": c.pair.teacher,
            "student": c.pair.student,
            "label": c.label,
        }
        for c in table.columns
    ]


def _ordered(table: Table, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = {(c.row.key, c.column.key): number for number, c in enumerate(table.cells)}
    return sorted(cells, key=lambda cell: order[cell["row"], cell["column"]])


def _merge(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Both plans in one, and remarks on what does not fit together."""
    remarks = []
    whole = whole_table(new["table"], new["dataset"])
    keys = {row.key for row in whole.rows}
    if strange := [row["key"] for row in old["rows"] if row["key"] not in keys]:
        remarks.append(f"rows of another version are left out of {FILE}: {', '.join(strange)}")
        old = {
            **old,
            "rows": [row for row in old["rows"] if row["key"] in keys],
            "cells": [cell for cell in old["cells"] if cell["row"] in keys],
        }
    cells = {(c["row"], c["column"]): c for c in old["cells"]}
    planned = [(cell["row"], cell["column"]) for cell in new["cells"]]
    replaced = 0
    for key, cell in zip(planned, new["cells"], strict=True):
        before = cells.get(key)
        if before is not None and _same_cell(before, cell):
            trials = {run["trial"]: run for run in [*before["runs"], *cell["runs"]]}
            cell = {**cell, "runs": [trials[number] for number in sorted(trials)]}
        elif before is not None:
            replaced += 1
        cells[key] = cell
    settings = new["cells"][0]["overrides"]
    others = sum(c["overrides"] != settings for key, c in cells.items() if key not in planned)
    if replaced:
        remarks.append(f"{replaced} cells of {FILE} had other settings and are replaced")
    if others:
        remarks.append(f"{others} other cells of {FILE} have other overrides or epochs than these")
    merged = {
        **new,
        "rows": _union(old["rows"], new["rows"], [row.key for row in whole.rows]),
        "columns": _union(old["columns"], new["columns"], [c.key for c in whole.columns]),
        "cells": _ordered(whole, list(cells.values())),
        "teachers": list({t["column"]: t for t in old["teachers"] + new["teachers"]}.values()),
    }
    return merged, remarks


def whole_table(name: str, dataset: str) -> Table:
    """With every pair that may be asked for."""
    return build_table(name, dataset, () if dataset == PAPERS_DATASET else tuple(PAIRS))


def _same_cell(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the runs of both are trials of one configuration, teacher included.

    Runs of the same trial are the same run or runs of different settings.
    """
    folders = {run["trial"]: run["folder"] for run in a["runs"]}
    shared = [run for run in b["runs"] if run["trial"] in folders]
    same_opts = (a["cfg_file"], a["opts"]) == (b["cfg_file"], b["opts"])
    return same_opts and all(folders[run["trial"]] == run["folder"] for run in shared)


def _union(old: list[dict], new: list[dict], order: list[str]) -> list[dict]:
    """Entries of both by their key, the newer ones winning, in the table's order."""
    entries = {entry["key"]: entry for entry in [*old, *new]}
    return sorted(entries.values(), key=lambda entry: order.index(entry["key"]))
