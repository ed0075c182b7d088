"""Reads and writes a folder of records; :mod:`~.schema` says what is in it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mdistiller.config import identity_of
from mdistiller.engine.rundir.files import sync
from mdistiller.engine.rundir.folder import claim
from mdistiller.errors import DataError

from .old_records import as_record, is_old, queries_of
from .schema import Query, Record

# Where grids are recorded unless another folder is given.
RESULTS = "results"

RUNS, QUERIES = "runs.jsonl", "queries.jsonl"

# ---- reading ---------------------------------------------------------------------------------


def read_runs(folder: str | Path) -> list[Record]:
    """The records of all ``*.jsonl`` in ``folder``, each run's outcome once.

    Files of other machines can lie beside ``runs.jsonl``, and those of earlier versions
    (``<table>-<dataset>.jsonl``). Records of the same run that differ in a number are two
    trainings of it, and both are there; :func:`by_id` chooses.

    Raises:
        DataError: a line is damaged, or a file cannot be read.
    """
    found: dict[str, Record] = {}
    for path in _files(folder):
        for number, line in _lines(path):
            record = _record(line, path, number)
            known = found.setdefault(record.outcome, record)
            if record.weights and not known.weights:
                found[record.outcome] = replace(known, weights=record.weights)
    return list(found.values())


def by_id(records: Iterable[Record], table: str = "") -> dict[str, Record]:
    """The record of each run that is done: the first one.

    Args:
        table: where a run was trained several times, rather the one that was trained for this.
    """
    found: dict[str, Record] = {}
    for record in records:
        if record.state == "done":
            known = found.setdefault(record.id, record)
            if table and record.table == table != known.table:
                found[record.id] = record
    return found


def read_queries(folder: str | Path) -> list[Query]:
    """What was asked for, each once.

    Raises:
        DataError: as :func:`read_runs`.
    """
    found = []
    path = Path(folder) / QUERIES
    for number, line in _lines(path):
        known: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in line.items()}
        try:
            found.append(Query(**known))
        except TypeError as error:
            raise _damaged(path, number, error) from None
    old = (line for path in _files(folder) for _, line in _lines(path) if is_old(line))
    found += queries_of(old)
    return [query for n, query in enumerate(found) if query not in found[:n]]


def _files(folder: str | Path) -> list[Path]:
    """``runs.jsonl`` first."""
    paths = sorted(Path(folder).glob("*.jsonl"), key=lambda path: (path.name != RUNS, path.name))
    return [path for path in paths if path.name != QUERIES]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects in a file by the numbers of their lines, without a last half line."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, error) from None
        if not isinstance(value, dict):
            raise _damaged(path, number, "not a JSON object")
        yield number, value


def _record(line: dict[str, Any], path: Path, number: int) -> Record:
    try:
        line = as_record(line) if is_old(line) else line
        needed = {"done": "result", "failed": "failure"}[line["state"]]
        if missing := [key for key in ("config", needed) if not isinstance(line.get(key), dict)]:
            raise ValueError(f"no entry {missing[0]}")
        known = {f.name for f in fields(Record)}
        # The hash of today, by whichever it was written.
        line = {k: v for k, v in line.items() if k in known} | {"id": identity_of(line["config"])}
        return Record(**line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, number, error) from None


def _damaged(path: Path, number: int, error: object) -> DataError:
    return DataError(
        f"{path}, line {number}: no record of a run ({error}); "
        "restore the file from version control, or remove that line"
    )


# ---- writing ---------------------------------------------------------------------------------


def append_run(folder: str | Path, record: Record) -> bool:
    """Add a record, unless it is there; returns whether it was added.

    Raises:
        DataError: a file is damaged or cannot be written.
    """
    return append_runs(folder, [record]) == 1


def append_runs(folder: str | Path, records: Iterable[Record]) -> int:
    """Add those that are not there, which are read once; returns how many were added.

    Raises:
        DataError: as :func:`append_run`.
    """

    def new() -> Iterator[Record]:
        there = {record.outcome for record in read_runs(folder)}
        for record in records:
            if record.outcome not in there:
                there.add(record.outcome)
                yield record

    return _append(Path(folder) / RUNS, new)


def append_query(folder: str | Path, query: Query) -> bool:
    """Add what was asked for, unless it is there; returns whether it was added.

    Raises:
        DataError: a file is damaged or cannot be written.
    """
    new = lambda: [] if query in read_queries(folder) else [query]  # noqa: E731
    return _append(Path(folder) / QUERIES, new) == 1


def _append(path: Path, new: Callable[[], Iterable[Record | Query]]) -> int:
    """Add lines, each whole or not at all; processes take turns, and what is new is asked then."""
    try:
        lock = claim(path, wait=True)
        assert lock is not None  # it has waited
        with lock as file:
            if not (lines := [as_line(entry) for entry in new()]):
                return 0
            # What a writer that was killed has left of a line.
            whole = path.read_bytes()
            file.truncate(whole.rfind(b"\n") + 1)
            file.write("".join(lines))
            file.flush()
            sync(file.fileno())
            return len(lines)
    except OSError as error:
        raise _unwritable(path, error) from None


def as_line(entry: Record | Query) -> str:
    """A line of a file of records, without what is unknown."""
    known = {k: v for k, v in asdict(entry).items() if v not in (None, "", (), [], {})}
    return json.dumps(known) + "\n"


def check_writable(folder: str | Path) -> None:
    """Make a folder for records; better now than when the first run has ended.

    Raises:
        DataError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path} ({error.strerror or error}); give another --record")
