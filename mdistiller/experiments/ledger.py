"""Records of runs, one JSON line each, in files that outlive the machine that trained them.

``<folder>/<table>-<dataset>.jsonl`` holds every run that ended, done or failed, and the teachers.
Lines are only ever added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mdistiller.engine.rundir.records import WEIGHTS_FILE, read_metrics
from mdistiller.errors import DataError

from .job import Job, hash_of, identity_hash, identity_of
from .old_derive import Source
from .plan import Plan, Run, request_opts
from .record import (
    TEACHER,
    append,
    check_writable,
    make_record,
    read_records,
    record_file,
    recorded_epochs,
)


@dataclass(frozen=True)
class Entry:
    """Which place in a table a run takes; ``column`` is the name of a teacher's network."""

    row: str
    column: str
    trial: int
    seed: int
    overrides: tuple[str, ...]


class Known(NamedTuple):
    """A record, and the hash of its settings by the defaults of this version."""

    record: dict[str, Any]
    hash: str


class Ledger:
    """The records of one table on one data set.

    Args:
        plan: of the table.

    Raises:
        DataError: a file of records is damaged.
    """

    def __init__(self, plan: Plan) -> None:
        request = plan.request
        self._table, self._dataset = plan.table.name, plan.table.dataset
        self._file = None
        self._records: list[Known] = []
        self._elsewhere: list[Known] = []
        self._entries: dict[Job, Entry] = {}
        self._copies = request.root / "weights"
        if request.record is not None:
            folder = Path(request.record)
            self._file = record_file(folder, self._table, self._dataset)
            self._records = _known(read_records(self._file))
            for path in sorted(folder.glob(f"*-{self._dataset}.jsonl")):
                if path != self._file:
                    self._elsewhere += _known(read_records(path))
        epochs = request.teacher_epochs
        self._shared = () if epochs is None else ("--teacher-epochs", str(epochs))
        for name, job in plan.teachers.items():
            seed = job.cfg.EXPERIMENT.SEED
            self._entries[job] = Entry(TEACHER, name, 0, seed, self._shared)
        self.enlist(plan.runs, plan)

    def enlist(self, runs: Iterable[Run], plan: Plan) -> None:
        """Know the places of these runs."""
        by_cell: dict[tuple[str, str], tuple[str, ...]] = {}
        for run in runs:
            cell = run.cell
            place = cell.row.key, cell.column.key
            if place not in by_cell:
                by_cell[place] = (*request_opts(plan.request, cell), *self._shared)
            self._entries[run.job] = Entry(*place, run.trial, run.seed, by_cell[place])

    # ---- what is known -------------------------------------------------------------------

    def result(self, job: Job) -> dict[str, Any] | None:
        """``result.json`` of a run that is done, in its folder or in the records."""
        result = job.result()
        if result is None and (found := self._done(job)):
            result = found["result"]
        return result

    def states(self, plan: Plan) -> dict[Job, str]:
        """A job's own state, "done" if it is recorded as done.

        A recorded teacher whose folder is gone is waiting while one of its students is.
        """
        found = {run.job: self._state(run.job) for run in plan.runs}
        wanted = {run.teacher for run in plan.runs if found[run.job] != "done"}
        for job in plan.teachers.values():
            found[job] = job.state() if job in wanted else self._state(job)
        return {job: found[job] for job in plan.jobs}

    def _state(self, job: Job) -> str:
        return "done" if self._done(job) else job.state()

    def _done(self, job: Job) -> dict[str, Any] | None:
        entry = self._entries[job]
        place = (entry.row, entry.column, entry.trial)
        return _matching(job, (k for k in self._records if _place(k.record) == place))

    def source(self, job: Job) -> Source | None:
        """What controls of this run can be made of; None if it is not done."""
        if job.result() is not None:
            epochs = recorded_epochs(read_metrics(job.folder))
            return Source(job.folder.name, job.cfg, epochs, job.folder / WEIGHTS_FILE)
        record = self._done(job)
        if record is None:
            return None
        copy = self._copies / job.folder.name / WEIGHTS_FILE
        return Source(job.folder.name, job.cfg, record["epochs"], copy)

    def restore_weights(self, job: Job) -> None:
        """Write the recorded weights of a run without a folder to where :meth:`source` says.

        Raises:
            DataError: there are none.
        """
        source = self.source(job)
        if source.weights_file.exists():
            return
        record = self._done(job) or {}
        if "weights" not in record:
            raise DataError(
                f"{source.name} has no {WEIGHTS_FILE}, which a control replays; "
                "move its folder away to have it trained again"
            )
        source.weights_file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(entry) + "\n" for entry in record["weights"])
        source.weights_file.write_text("".join(lines))

    # ---- what is written -----------------------------------------------------------------

    def adopt(self, plan: Plan) -> int:
        """Record runs that other tables have recorded: the same settings are the same run.

        Returns:
            How many there were.
        """
        count = 0
        for run in plan.runs if self._file else ():
            if self._state(run.job) == "done":
                continue
            if found := _matching(run.job, self._elsewhere):
                same = {"table": found["table"], "row": found["row"]}
                copy = {**found, **self._place_of(run.job), "same_as": same}
                count += self._append(copy)
        return count

    def catch_up(self, plan: Plan) -> None:
        """Record what has ended without being recorded.

        Raises:
            DataError: the folder of records cannot be written.
        """
        if self._file:
            check_writable(self._file.parent)
        for job in plan.jobs if self._file else ():
            if not self._done(job) and (state := job.state()) in ("done", "failed"):
                self.observe(state, job)

    def observe(self, event: str, job: Job) -> None:
        """Of :class:`~.schedule.Schedule`: record a job that ended."""
        if self._file is not None and event in ("done", "failed"):
            self._append({**self._place_of(job), **make_record(job, event)})

    def _place_of(self, job: Job) -> dict[str, Any]:
        entry = self._entries[job]
        return {
            "table": self._table,
            "dataset": self._dataset,
            "row": entry.row,
            "column": entry.column,
            "trial": entry.trial,
            "seed": entry.seed,
            "overrides": list(entry.overrides),
        }

    def _append(self, record: dict[str, Any]) -> bool:
        added = append(self._file, record)
        if added:
            self._records += _known([record])
        return added


def _known(records: Iterable[dict[str, Any]]) -> list[Known]:
    """By the recorded settings, not by the recorded hash: defaults may have changed."""
    return [Known(r, hash_of(identity_of(r["config"]))) for r in records]


def _place(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["row"], record["column"], record["trial"]


def _matching(job: Job, candidates: Iterable[Known]) -> dict[str, Any] | None:
    """The first that is of a completed run with the job's settings."""
    wanted = identity_hash(job.cfg)
    for record, found in candidates:
        usable = record["state"] == "done" and ("weights" in record or not job.cfg.LOG.WEIGHTS)
        if found == wanted and usable:
            return record
    return None
