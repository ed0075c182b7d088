"""A table's plan from its records, for a report where the runs' folders are gone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mdistiller.config.names import affects_result
from mdistiller.errors import DataError
from mdistiller.experiments.job import hash_of, identity_of
from mdistiller.experiments.plan_file import whole_table
from mdistiller.experiments.record import TEACHER, read_records, record_file
from mdistiller.experiments.tables import Row as LayoutRow

from .plan import Cell, Column, Plan, Row
from .runs import Run, complete_run, failure_of

# A record has six digits of each number.
_TOLERANCE = 1e-3

Records = list[dict[str, Any]]


def load_recorded(
    folder: str | Path,
    table: str,
    dataset: str | None = None,
    prefix: str | Path = "./output",
    settings: str | None = None,
) -> Plan:
    """The plan of ``folder/<table>-<dataset>.jsonl``.

    Runs with other overrides than most are left out, and so are runs of a cell whose settings
    have changed since; the plan's remarks count them.

    Args:
        dataset: may be left out where the table was recorded on one only.
        prefix: where the report goes unless told otherwise, ``<prefix>/<table>/<dataset>``.
        settings: the id of the overrides whose runs are wanted, as the remarks name it.

    Raises:
        DataError: there are no such records, or they are damaged.
    """
    path = _find(Path(folder), table, dataset)
    dataset = path.stem.removeprefix(f"{table}-")
    records = read_records(path)
    by_settings = _by_settings(path, records)
    if settings is None:
        settings = next(iter(by_settings))
    if settings not in by_settings:
        raise DataError(f"{path} has no runs of settings {settings}: {', '.join(by_settings)}")
    remarks = [_other(s, by_settings[s]) for s in by_settings if s != settings]
    return _build(path, Path(prefix) / table / dataset, records, by_settings[settings], remarks)


def recorded_tables(folder: str | Path) -> list[tuple[str, str]]:
    """(table, data set) of every file of records."""
    names = sorted(p.stem for p in Path(folder).glob("*-*.jsonl"))
    return [tuple(name.split("-", 1)) for name in names]


def recorded_settings(folder: str | Path, table: str, dataset: str) -> tuple[str, ...]:
    """The ids of the overrides in a file of records; :func:`load_recorded` takes the first.

    Raises:
        DataError: there are no such records, or they are damaged.
    """
    path = _find(Path(folder), table, dataset)
    return tuple(_by_settings(path, read_records(path)))


def _by_settings(path: Path, records: Records) -> dict[str, Records]:
    """Runs by their overrides: most runs first, of equally many the latest."""
    found: dict[str, Records] = defaultdict(list)
    for record in records:
        if record["row"] != TEACHER:
            found[settings_id(record)].append(record)
    if not found:
        table = path.stem.split("-", 1)[0]
        raise DataError(f"{path} has no runs yet; run tools/reproduce.py {table} first")
    latest_first = list(found.items())[::-1]
    return dict(sorted(latest_first, key=lambda item: -len(item[1])))


def settings_id(record: dict[str, Any]) -> str:
    """Six hexadecimal digits for the overrides that all cells of a call have in common."""
    return hash_of(_overrides(record))[:6]


def _overrides(record: dict[str, Any]) -> dict[str, str]:
    given = record["overrides"]
    pairs = dict(zip(given[0::2], given[1::2], strict=True))
    return {k: v for k, v in pairs.items() if affects_result(k)}


def _other(name: str, records: Records) -> str:
    overrides = " ".join(f"{k} {v}" for k, v in _overrides(records[0]).items()) or "no overrides"
    return f"left out: {len(records)} runs with {overrides} (--settings {name})"


def _find(folder: Path, table: str, dataset: str | None) -> Path:
    if dataset is not None:
        found = [path for path in (record_file(folder, table, dataset),) if path.exists()]
    else:
        found = sorted(folder.glob(f"{table}-*.jsonl"))
    if len(found) == 1:
        return found[0]
    if found:
        names = " | ".join(p.stem.removeprefix(f"{table}-") for p in found)
        raise DataError(f"{table} is recorded on several data sets; give --dataset {names}")
    known = ", ".join(" on ".join(pair) for pair in recorded_tables(folder)) or "none"
    wanted = f"{table} on {dataset}" if dataset else table
    raise DataError(
        f"no records of {wanted} in {folder} (there: {known}); "
        f"run tools/reproduce.py {table} --record {folder} first"
    )


def _build(path: Path, root: Path, records: Records, runs: Records, remarks: list[str]) -> Plan:
    dataset = path.stem.split("-", 1)[1]
    table = whole_table(path.stem.split("-", 1)[0], dataset)
    rows, columns = {r.key: r for r in table.rows}, {c.key: c for c in table.columns}
    known = [r for r in runs if r["row"] in rows and r["column"] in columns]
    if len(known) < len(runs):
        remarks.append(
            f"left out: {len(runs) - len(known)} runs of rows or pairs of other versions"
        )
    by_cell: dict[tuple[str, str], Records] = defaultdict(list)
    for record in known:
        by_cell[record["row"], record["column"]].append(record)
    cells, stale = [], 0
    for cell in table.cells:
        there = by_cell.get((cell.row.key, cell.column.key))
        if there:
            current = list(_current(there, rows[cell.row.key]))
            stale += len(there) - sum(r in current for r in there)
            found = tuple(_trials(current, root))
            cells.append(Cell(cell.row.key, cell.column.key, cell.printed, found))
    if stale:
        remarks.append(f"left out: {stale} runs of cells whose settings have changed since")
    present = {cell.column for cell in cells}, {cell.row for cell in cells}
    shown = [c for c in table.columns if c.key in present[0]]
    return Plan(
        root,
        *(table.name, table.title, dataset, table.kind),
        tuple(_row(row) for row in table.rows if row.key in present[1]),
        tuple(Column(c.key, c.label, c.pair.teacher, c.pair.student) for c in shown),
        tuple(cells),
        _teachers(records, known, root),
        tuple(remarks),
        tuple(word for pair in _overrides(runs[0]).items() for word in pair),
    )


def _row(row: LayoutRow) -> Row:
    return Row(row.key, row.label, row.method, row.variant, row.baseline, row.x)


def _current(records: Records, row: LayoutRow) -> Iterator[dict[str, Any]]:
    """Those with the settings of the newest, by which trials of one cell agree."""
    newest = _shared_settings(records[-1], row)
    return (r for r in records if _shared_settings(r, row) == newest)


def _shared_settings(record: dict[str, Any], row: LayoutRow) -> str:
    found = identity_of(record["config"])
    own = {"EXPERIMENT.SEED", "REPLAY.FILE"}
    if row.derived is not None:
        own |= {"SOLVER.LR", *(key for key in found if ".LOSS." in key)}
    return json.dumps({k: v for k, v in found.items() if k not in own}, sort_keys=True)


def _trials(records: Records, root: Path) -> Iterator[Run]:
    """One run a trial: the first that was completed, of the newest settings of that trial."""
    by_trial: dict[int, Records] = defaultdict(list)
    for record in records:
        by_trial[record["trial"]].append(record)
    for trial in sorted(by_trial):
        newest = by_trial[trial][-1]["hash"]
        same = [r for r in by_trial[trial] if r["hash"] == newest]
        done = [r for r in same if r["state"] == "done"]
        yield recorded_run(done[0] if done else same[-1], root)


def recorded_run(record: dict[str, Any], root: Path) -> Run:
    """As :func:`~.runs.read_run` finds it in a folder."""
    path = root / f"{record['row']}-{record['column']}-t{record['trial']}-{record['hash']}"
    history = tuple(record["epochs"])
    if record["state"] == "failed":
        failure = failure_of(record["failure"])
        return Run(path, record["trial"], record["seed"], "failed", **failure, history=history)
    run = complete_run(path, record["trial"], record["seed"], record["result"], history, _TOLERANCE)
    return replace(run, system=str(record.get("recorded", {}).get("system", "")))


def _teachers(records: Records, runs: Iterable[dict[str, Any]], root: Path) -> dict[str, Run]:
    """By column the recorded training of the teacher that its runs name."""
    by_name = {f"{TEACHER}-{r['column']}-{r['hash']}": r for r in records if r["row"] == TEACHER}
    found = {}
    for run in runs:
        name = Path(run["config"].get("DISTILLER.TEACHER_CKPT", "")).parent.name
        if name in by_name:
            found[run["column"]] = recorded_run(by_name[name], root)
    return found
