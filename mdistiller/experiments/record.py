"""One run as one JSON line, and the files of such lines."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mdistiller.config import used_groups
from mdistiller.engine.rundir.folder import claim
from mdistiller.engine.rundir.records import WEIGHTS_FILE, read_lines, read_metrics
from mdistiller.engine.rundir.result import source_commit
from mdistiller.errors import DataError

from .job import Job, identity_hash, relevant

# Where grids are recorded unless another folder is given.
RESULTS = "results"

# The row under which teachers stand.
TEACHER = "teacher"

_NEEDED = ("table", "dataset", "row", "column", "trial", "state", "hash", "config", "overrides")


def record_file(folder: str | Path, table: str, dataset: str) -> Path:
    return Path(folder) / f"{table}-{dataset}.jsonl"


def make_record(job: Job, state: str) -> dict[str, Any]:
    """What is kept of a job that is "done" or "failed", beside its place in a table.

    All settings that it uses, so that its identity can be compared whatever the defaults are
    by then; the epochs' entries in six digits; the weights of every step in single precision,
    exactly, which is what a replay multiplies with.
    """
    settings = relevant(used_groups(job.cfg).leaves())
    record: dict[str, Any] = {"state": state, "hash": identity_hash(job.cfg), "config": settings}
    if state == "done":
        record["result"] = job.result()
    else:
        record["failure"] = _failure(job)
    record["epochs"] = recorded_epochs(read_metrics(job.folder))
    if weights := read_lines(job.folder / WEIGHTS_FILE):
        record["weights"] = [{k: _single(v) for k, v in entry.items()} for entry in weights]
    record["recorded"] = {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }
    return record


def recorded_epochs(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl with six significant digits."""
    return [_rounded(entry) for entry in entries]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _single(value: int | Sequence[float]) -> int | list[float]:
    """Nine digits tell all numbers of single precision apart."""
    if isinstance(value, int):
        return value
    return [float(f"{x:.9g}") for x in np.asarray(value, dtype=np.float32).tolist()]


def _failure(job: Job) -> dict[str, Any]:
    try:
        return json.loads(job.failure_file.read_text())
    except (OSError, json.JSONDecodeError):
        return {"exit_code": None, "tail": job.log_tail(), "finished": None}


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file, none if it is missing; a last line that was cut off is left out.

    Raises:
        DataError: a line is damaged, or the file cannot be read.
    """
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    whole = text[: text.rfind("\n") + 1]
    return [_parse(line, path, number) for number, line in enumerate(whole.splitlines(), 1)]


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        missing = [key for key in _NEEDED if key not in record]
        needed = {"done": "result", "failed": "failure"}[record["state"]] if not missing else None
        if missing or needed not in record:
            raise ValueError(f"no entry {(missing or [needed])[0]}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, line {number}: no record of a run ({error}); "
            "restore the file from version control, or remove that line"
        ) from None


def check_writable(folder: Path) -> None:
    """Make a folder for records; better now than when the first run has ended.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(folder, error) from None


def append(path: Path, record: dict[str, Any]) -> bool:
    """Add a record as a line, whole or not at all; processes take turns.

    Returns:
        Whether it was added: the same run's same outcome is recorded once.

    Raises:
        DataError: the file is damaged or cannot be written.
    """
    try:
        with claim(path, wait=True) as file:
            there = read_records(path)
            if any(_outcome(record) == _outcome(other) for other in there):
                return False
            # What a writer that was killed has left of a line.
            whole = path.read_bytes()
            file.truncate(whole.rfind(b"\n") + 1)
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            return True
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path} ({error.strerror or error}); give another --record")


def _outcome(record: dict[str, Any]) -> tuple[Any, ...]:
    place = (record["row"], record["column"], record["trial"], record["hash"], record["state"])
    # A run is done once, but may fail several times.
    return (*place, record.get("failure", {}).get("finished"))
