"""A run's folder as a line of ``runs.jsonl``."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mdistiller.dataset import registered_checkpoint
from mdistiller.device import processor
from mdistiller.engine.rundir.records import WEIGHTS_FILE, read_lines, read_metrics
from mdistiller.engine.rundir.result import source_commit

from .job import Job
from .schema import TEACHER_FILE, Record, settings_of


def record_of(job: Job, state: str, table: str = "", command: Sequence[str] = ()) -> Record:
    """Of a job that is "done" or "failed".

    Args:
        table: for which it was trained.
        command: by which.
    """
    result = (job.result() or {}) if state == "done" else {}
    settings = settings_of(job.cfg)
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Record(
        *(job.id, state, settings),
        result=result,
        failure=_without_here(job.failure()) if state == "failed" else {},
        epochs=recorded_epochs(read_metrics(job.folder)),
        weights=[
            {key: _single(value) for key, value in entry.items()}
            for entry in read_lines(job.folder / WEIGHTS_FILE)
        ],
        teacher=_teacher(job, settings, result),
        machine=_machine(result),
        recorded={k: v for k, v in (("at", at), ("commit", source_commit())) if v},
        table=table,
        command=tuple(command),
    )


def recorded_epochs(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl with six significant digits."""
    return [_rounded(entry) for entry in entries]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _single(value: int | Sequence[float]) -> int | list[float]:
    """Nine digits tell all numbers of single precision apart, in which a replay multiplies."""
    if isinstance(value, int):
        return value
    return [float(f"{x:.9g}") for x in np.asarray(value, dtype=np.float32).tolist()]


def _without_here(failure: dict[str, Any]) -> dict[str, Any]:
    """Lines of a log without the folders of this machine."""
    here, home = f"{Path.cwd()}{os.sep}", str(Path.home())
    tail = [str(line).replace(here, "").replace(home, "~") for line in failure.get("tail", ())]
    return {**failure, "tail": tail}


def _teacher(job: Job, settings: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    node = job.cfg.DISTILLER
    if node.TYPE == "NONE":
        return {}
    registered = registered_checkpoint(settings["DATASET.TYPE"], node.TEACHER)
    path = node.TEACHER_CKPT or registered
    known = {
        "network": node.TEACHER,
        "file": settings[TEACHER_FILE] or ("/".join(registered.parts[-2:]) if registered else ""),
        "top1": result.get("teacher_top1"),
        "sha256": sha256_of(Path(path)) if path else None,
    }
    return {key: value for key, value in known.items() if value}


@cache
def sha256_of(path: Path) -> str | None:
    """Hexadecimal, of a file's contents when a process first asks; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _machine(result: dict[str, Any]) -> dict[str, Any]:
    known = {
        **processor(),
        **result.get("machine", {}),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "threads": result.get("threads"),
        "torch": result.get("versions", {}).get("torch"),
    }
    return {key: value for key, value in known.items() if value}
