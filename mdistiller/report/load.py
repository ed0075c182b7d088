"""Results of a table from its records and run folders, or of any run folders."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mdistiller.errors import DataError
from mdistiller.experiments.job import find_folders
from mdistiller.experiments.query import Place, places, table_of
from mdistiller.experiments.records import RESULTS, by_id, read_queries, read_runs
from mdistiller.experiments.schema import Query, Record
from mdistiller.experiments.tables import TABLES, Column, Table, build_table
from mdistiller.experiments.tables.layouts import Row
from mdistiller.experiments.tables.pairs import Pair
from mdistiller.experiments.tables.study import STUDY

from .csv_files import varying
from .frame import folder_run, recorded_run, run_frame
from .results import FOLDERS, Results, in_order

# What versions before 0.2 left in a table's folder, instead of records.
PLAN = "plan.json"


def load_table(
    name: str,
    dataset: str | None = None,
    prefix: str | Path = "./output",
    records: str | Path | None = None,
    settings: str | None = None,
) -> Results:
    """A table that was asked for, by its records and by the run folders below ``prefix``.

    Runs with other overrides than most are left out; the remarks count them.

    Args:
        dataset: may be left out where the table was asked for on one only.
        records: folder of records; None: ``results`` for the study's grids, if it has some of
            them, else ``prefix``.
        settings: id of the overrides whose runs are wanted, as the remarks name it.

    Raises:
        DataError: nothing was asked for, or the records are damaged.
    """
    name = name.lower()
    if records is None:
        grid = name in STUDY and any(query.table == name for query in read_queries(RESULTS))
        records = RESULTS if grid else prefix
    queries = read_queries(records)
    found = [q for q in queries if q.table == name and dataset in (None, q.dataset)]
    datasets = list(dict.fromkeys(query.dataset for query in found))
    if not datasets and (plans := sorted(Path(prefix).glob(f"{name}/{dataset or '*'}/{PLAN}"))):
        if len(plans) == 1:
            return _of_plan(plans[0])
        datasets = [path.parent.name for path in plans]
    if not datasets:
        known = ", ".join(sorted({f"{q.table} on {q.dataset}" for q in queries})) or "nothing"
        raise DataError(
            f"no {name}{f' on {dataset}' if dataset else ''} in {records} (there: {known}); "
            f"run tools/reproduce.py {name} first, which also records what is trained already"
        )
    if len(datasets) > 1:
        several = " | ".join(datasets)
        raise DataError(f"{name} is there on several data sets; give --dataset {several}")
    parts = _by_settings(found, read_runs(records), Path(records), Path(prefix))
    for part in parts:
        if settings in (None, part.settings):
            return part
    known = ", ".join(part.settings for part in parts)
    raise DataError(f"{records} has no runs of settings {settings}: {known}")


def load_all(records: str | Path) -> list[Results]:
    """Every table on record, the study first; of one table the settings of most runs first.

    Raises:
        DataError: there is none, or the records are damaged.
    """
    runs = read_runs(records)
    tables: dict[tuple[str, str], list[Query]] = {}
    for query in read_queries(records):
        tables.setdefault((query.table, query.dataset), []).append(query)
    order = {name: (name not in STUDY, number) for number, name in enumerate(TABLES)}
    known = sorted((p for p in tables if p[0] in order), key=lambda p: (order[p[0]], p[1]))
    if not known:
        raise DataError(
            f"no records in {records}; run tools/reproduce.py with --record {records} first"
        )
    return [part for p in known for part in _by_settings(tables[p], runs, Path(records))]


def _by_settings(
    queries: list[Query], runs: list[Record], records: Path, prefix: Path | None = None
) -> list[Results]:
    """The results of one table by the overrides: most runs first, of equally many the latest."""
    groups: dict[str, list[Query]] = {}
    for query in reversed(queries):
        groups.setdefault(query.settings_id, []).insert(0, query)
    parts = [_results(own, runs, records, prefix) for own in groups.values()]
    parts.sort(key=lambda part: -part.states["done"])
    remarks = {}
    for part in parts:
        given = " ".join(f"{k} {v}" for k, v in groups[part.settings][0].settings.items())
        count = part.states["done"] + part.states["failed"]
        words = f"left out: {count} runs with {given or 'no overrides'}"
        remarks[part.settings] = f"{words} (--settings {part.settings})"
    return [
        replace(part, remarks=tuple(v for k, v in remarks.items() if k != part.settings))
        for part in parts
    ]


def _results(
    queries: list[Query], runs: list[Record], records: Path, prefix: Path | None
) -> Results:
    """What was asked for in ``queries`` of one table with the same settings."""
    name, dataset = queries[0].table, queries[0].dataset
    done = by_id(runs, name)
    ended = {record.id: record for record in runs} | done
    asked: dict[tuple[str, str, int], Place] = {}
    for place in (place for query in queries for place in places(query, done)):
        if place.key not in asked or asked[place.key].id not in ended:
            asked[place.key] = place
    missing = [place.id for place in asked.values() if place.id and place.id not in ended]
    folders = find_folders(prefix, missing) if prefix and missing else {}
    root = (prefix or records) / name / dataset
    lines = []
    for (row, column, trial), place in asked.items():
        id = place.id or ""
        path = folders.get(id, root / f"{place.label}-{place.id}")
        known = ended.get(id)
        line = recorded_run(known, path) if known else folder_run(path, id)
        lines.append({**line, "row": row, "column": column, "trial": trial, "seed": place.seed})
    table = _union([table_of(query) for query in queries])
    return Results(
        *(root, name, table.title, dataset, table.kind, table.rows, table.columns),
        in_order(run_frame(lines), table.rows, table.columns),
        {(c.row.key, c.column.key): c.printed for c in table.cells if c.printed is not None},
        settings=queries[0].settings_id,
        commands=tuple(_command(query, records) for query in queries),
        published=table.published,
    )


def _union(parts: list[Table]) -> Table:
    """What several parts of a table make up, in its order."""
    pairs = dict.fromkeys(column.pair.key for part in parts for column in part.columns)
    rows = {row.key for part in parts for row in part.rows}
    whole = build_table(parts[0].name, parts[0].dataset, tuple(pairs))
    return replace(
        whole,
        rows=tuple(row for row in whole.rows if row.key in rows),
        cells=tuple(cell for cell in whole.cells if cell.row.key in rows),
    )


def _command(query: Query, records: Path) -> str:
    """The line of shell that trains what was asked for, and no more."""
    usual = build_table(query.table, query.dataset)
    pairs = query.pairs if query.pairs != tuple(c.pair.key for c in usual.columns) else ()
    everything = {row.key for row in usual.rows} <= set(query.methods)
    options: dict[str, Sequence[object]] = {
        "--dataset": [query.dataset],
        "--trials": [query.trials],
        "--epochs": [query.epochs],
        "--teacher-epochs": [query.teacher_epochs],
        "--record": [records],
        "--pairs": pairs,
        "--methods": () if everything else query.methods,
    }
    given = [word for key, values in options.items() if any(values) for word in (key, *values)]
    words = ["python", "tools/reproduce.py", query.table, *given, *query.overrides]
    return shlex.join(map(str, words))


def _of_plan(path: Path) -> Results:
    """A table that a version before 0.2 trained, whose ``plan.json`` names the folders."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(
            Row(r["key"], r["label"], r["method"], r["variant"], r["baseline"], r["x"])
            for r in plan["rows"]
        )
        columns = tuple(
            Column(c["key"], c["label"], Pair(c["key"], c["teacher"], c["student"]))
            for c in plan["columns"]
        )
        lines = [
            folder_run(path.parent / run["folder"])
            | {"row": cell["row"], "column": cell["column"], "trial": run["trial"]}
            for cell in plan["cells"]
            for run in cell["runs"]
        ]
        printed = {(c["row"], c["column"]): c["printed"] for c in plan["cells"] if c["printed"]}
        name, title, dataset, kind = (plan[key] for key in ("table", "title", "dataset", "kind"))
        runs = in_order(run_frame(lines), rows, columns)
        return Results(path.parent, name, title, dataset, kind, rows, columns, runs, printed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); run tools/reproduce.py again") from None


# ---- any folders -----------------------------------------------------------------------------


def load_folders(paths: Sequence[str | Path]) -> Results:
    """Any run folders as a table: a row a configuration, whose seeds are its trials.

    Of a folder of runs all are taken. Other files (``output/digits/*`` has logs) and folders
    without a run are passed over. The first configuration is what the others are compared with.

    Raises:
        DataError: there is no run.
    """
    folders = list(dict.fromkeys(run for path in paths for run in _runs_in(Path(path))))
    if not folders:
        raise DataError(
            f"no run in {', '.join(map(str, paths))}; give output/<project>/<run>, "
            "or the name of a table that tools/reproduce.py trained"
        )
    runs = run_frame(map(folder_run, folders))
    runs["row"] = _names(runs)
    # Of a run whose config.yaml is damaged neither is known.
    runs["column"] = runs["student"].map(str) + ", " + runs["dataset"].map(str)
    # Runs of one seed are paired, whatever their configuration.
    runs["trial"] = runs.groupby("column")["seed"].rank("dense").fillna(0).astype(int)
    again = runs.duplicated(["row", "column", "trial"])
    runs, left_out = runs[~again], int(again.sum())
    first = runs.drop_duplicates("row")
    baseline = first["row"].iloc[0]
    rows = tuple(
        Row(run.row, run.row, str(run.distiller).removeprefix("CROSSBATCH_"), run.trainer or "",
            None if run.row == baseline else baseline)
        for run in first.itertuples()
    )  # fmt: skip
    columns = tuple(
        Column(run.column, run.column, Pair(run.column, str(run.teacher), str(run.student)))
        for run in runs.drop_duplicates("column").itertuples()
    )
    words = f"left out: {left_out} runs of a configuration and seed that another folder has, too"
    return Results(
        Path(os.path.commonpath([folder.parent for folder in folders])),
        *(
            FOLDERS,
            "Runs side by side",
            " and ".join(runs["dataset"].dropna().astype(str).unique()),
            "table",
        ),
        *(rows, columns, in_order(runs, rows, columns)),
        remarks=(words,) * bool(left_out),
    )


def _runs_in(path: Path) -> Iterable[Path]:
    path = Path(os.path.abspath(path))
    if (path / "config.yaml").is_file():
        return [path]
    return sorted(file.parent for file in path.glob("*/config.yaml"))


def _names(runs: pd.DataFrame) -> list[str]:
    """What each run is called: its distiller, and the settings in which it differs from others."""
    settings = varying(runs).drop(
        columns=["DISTILLER.TYPE", "DISTILLER.STUDENT", "DATASET.TYPE"], errors="ignore"
    )
    return [
        ", ".join([str(name), *(f"{key} {value}" for key, value in own.items() if value)])
        for name, own in zip(runs["distiller"], settings.to_dict("records"), strict=True)
    ]
