"""What a request needs, what of it is there, and what can be trained now."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mdistiller.config import identity, load_cfg
from mdistiller.dataset import registered_checkpoint
from mdistiller.engine.check import check_config
from mdistiller.engine.rundir.files import write_text
from mdistiller.engine.rundir.records import WEIGHTS_FILE
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.seeding import derive_seed

from .caches import Caches
from .derive import scaled_epochs
from .fleet.grouping import plan_fleets
from .job import Job, find_folders
from .make_record import record_of
from .query import SEED, Place, places, table_of
from .records import append_run, by_id, check_writable, read_runs
from .runner import Work
from .schema import TEACHER_FILE, Query, portable, without_places
from .tables import STUDY, Cell
from .tables.pairs import teacher_config

STATES = ("done", "running", "failed", "waiting")
TEACHERS = "teachers"

# The runner's own; the option to use instead, if there is one.
_RESERVED = {
    SEED: "",
    "EXPERIMENT.PROJECT": "",
    "EXPERIMENT.NAME": "",
    "DATASET.TYPE": "; use --dataset",
    "LOG.PREFIX": "; use --prefix",
}
# The latest and the best checkpoint suffice for every table; a user's override wins.
_KEEP_FEW = ("LOG.SAVE_CHECKPOINT_FREQ", "1000000")
# Overrides that hold for a teacher's training, too.
_SHARED_KEYS = ("DATASET.ROOT", "DATASET.NUM_WORKERS", "SOLVER.DEVICE", "EXPERIMENT.IMPORTS")


@dataclass(frozen=True)
class Request:
    """What is to be reproduced.

    Attributes:
        table, dataset, pairs, methods, trials, epochs, teacher_epochs: see :class:`Query`.
        prefix: folder for all results.
        opts: overrides of every student's configuration.
        train_teachers: train the teachers whose checkpoint is missing.
        record: folder of records; None: ``results`` for the study's grids, else the prefix.
        command: the command line.
        teacher_cache: keep each teacher's answers in a file where that saves time, "fp32" or
            "fp16"; None: do not.
    """

    table: str
    dataset: str = "cifar100"
    pairs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    trials: int | None = None
    epochs: int | None = None
    teacher_epochs: int | None = None
    prefix: str = "./output"
    opts: tuple[str, ...] = ()
    train_teachers: bool = False
    record: str | None = None
    command: tuple[str, ...] = ()
    teacher_cache: str | None = None

    def check(self) -> None:
        """Raises ConfigError if a number or an override cannot be meant."""
        for name in ("trials", "epochs", "teacher_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be 1 or greater, not {value}")
        if len(self.opts) % 2:
            raise ConfigError(f"overrides come in pairs KEY VALUE, but {self.opts[-1]!r} is alone")
        for key in self.opts[0::2]:
            if key in _RESERVED:
                raise ConfigError(f"{key} is set by the plan{_RESERVED[key]}")

    @property
    def records(self) -> Path:
        grid = self.table.lower() in STUDY
        return Path(self.record or ("results" if grid else self.prefix))

    def query(self, teachers: dict[str, str]) -> Query:
        """With the overrides as they are given, and the files of ``teachers``."""
        return Query(
            *(self.table.lower(), self.dataset.lower(), self.pairs, self.methods, self.trials),
            *(self.epochs, self.teacher_epochs, self.opts, teachers),
        )


class Plan:
    """All runs of a request.

    Args:
        request: what is asked for.
        write: record runs that are done in their folders but not recorded.

    Attributes:
        query: of the request, to be kept with the records.
        teachers: trainings of teachers, by the teacher's name.
        missing: files of teachers that are neither there nor to be trained, by name.
        places: every trial of every cell, in order.
        jobs: the runs by their id.
        done: records of finished runs by their id.
        caches: files of teachers' answers.

    Raises:
        ConfigError: an unknown name, a wrong override, or a cell that cannot be trained.
        DataError: the records are damaged or cannot be written.
    """

    def __init__(self, request: Request, write: bool = True) -> None:
        request.check()
        self.request, self._write = request, write
        self.table = table_of(request.query({}))
        self.teachers: dict[str, Job] = {}
        self.missing: dict[str, Path] = {}
        files = self._plan_teachers()
        self._asked = request.query(files)
        short = files or {name: dict(_pairs(request.opts))[TEACHER_FILE] for name in self._networks}
        self.query = replace(
            self._asked,
            overrides=without_places(request.opts),
            teachers={name: portable(file) for name, file in short.items()},
            command=tuple(map(portable, request.command)),
        )
        if write:
            check_writable(request.records)
        self.done = by_id(read_runs(request.records), request.table)
        self.jobs: dict[str, Job] = {}
        self.caches = Caches(request.prefix, request.teacher_cache)
        self._checked: set[tuple[str, str]] = set()
        self.update()

    # ---- what is there -------------------------------------------------------------------

    def update(self) -> None:
        """Find the runs whose settings can be known by now, and what of them is done."""
        before = -1
        while before < len(self.done):
            before = len(self.done)
            self.places = places(self._asked, self.done)
            new = {p.id: p for p in self.places if p.id and p.id not in self.jobs}
            folders = find_folders(self.request.prefix, new)
            for id, place in new.items():
                self.jobs[id] = self._job(id, place, folders.get(id))
                if place.source is None:
                    self._check(place, self.jobs[id])
                if id not in self.done and self.jobs[id].result() is not None:
                    self.settle("done", self.jobs[id])

    def settle(self, state: str, job: Job) -> None:
        """Note that a job has ended, "done" or "failed"."""
        record = record_of(job, state, self.request.table, self.query.command)
        if self._write:
            append_run(self.request.records, record)
        if state == "done":
            self.done[job.id] = record

    def state(self, id: str | None) -> str:
        """One of :data:`STATES`; a run whose settings are not known yet is waiting."""
        if id in self.done:
            return "done"
        return self.jobs[id].state if id else "waiting"

    def counts(self) -> Counter[str]:
        return Counter(self.state(place.id) for place in self.places)

    @property
    def needed_teachers(self) -> list[Job]:
        """Teachers that are to be trained before a run that is not done."""
        names = {p.cell.column.pair.teacher for p in self.places if p.id not in self.done}
        found = (job for name, job in self.teachers.items() if name in names)
        return [job for job in found if job.result() is None]

    def refuse_missing_teachers(self) -> None:
        """Raises CheckpointError if a teacher is missing."""
        if self.missing:
            files = ", ".join(f"{name} ({path})" for name, path in self.missing.items())
            raise CheckpointError(
                f"missing teachers: {files}; `python tools/download_teachers.py` fetches the "
                "published ones (all but ResNet101), --train-teachers trains what is missing"
            )

    # ---- what can be trained -------------------------------------------------------------

    def work(self, fleet_size: int = 1) -> tuple[Work, list[str]]:
        """What can be trained now, and remarks on what cannot share a process.

        Raises:
            ConfigError: a cell whose settings have just become known cannot be trained.
        """
        self.update()
        lacking = {job.id for job in self.needed_teachers}
        sources = {p.source for p in self.places if p.id is None and p.source is not None}
        groups: dict[tuple[str, int], dict[str, Job]] = {}
        for place in self.places:
            job = self.jobs[place.id] if place.id else None
            if job is None or job.id in self.done or job.failure_file.exists():
                continue
            teacher = self.teachers.get(place.cell.column.pair.teacher)
            if teacher is None or teacher.id not in lacking:
                if self._write and place.source is not None:
                    self._restore_weights(job, place.source)
                    self._check(place, job)
                group = place.cell.column.pair.key, place.trial
                groups.setdefault(group, {})[job.id] = job
        ready_groups = self._with_caches(
            [list(group.values()) for group in groups.values()], fleet_size
        )
        fleets, remarks = plan_fleets(ready_groups, fleet_size)
        teachers = (job for job in self.needed_teachers if not job.failure_file.exists())
        ready = [*((job,) for job in teachers), *fleets]
        return Work(ready, frozenset(lacking | sources)), remarks

    def _with_caches(self, groups: list[list[Job]], fleet_size: int) -> list[list[Job]]:
        """The groups, with the files of teachers' answers that their runs read."""
        found = {job.id: job for job in self.caches.assign(groups, fleet_size, self._write)}
        self.jobs |= found
        return [[found[job.id] for job in group] for group in groups]

    def _restore_weights(self, job: Job, source: str) -> None:
        """Write the weights of run ``source``, if ``job`` replays them, to where it reads them."""
        if "REPLAY.FILE" not in job.opts:
            return
        file = Path(job.cfg.REPLAY.FILE)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(entry) + "\n" for entry in self.done[source].weights)
            write_text(file, "".join(lines))

    # ---- how runs are made ---------------------------------------------------------------

    def _job(self, id: str, place: Place, folder: Path | None) -> Job:
        request, opts = self.request, place.opts
        root = Path(request.prefix) / "runs"
        if folder is None:
            # Not by the row, which is another one in another table that wants the same run.
            column = place.cell.column.pair.key
            name = f"{place.cell.method.lower()}-{column}-t{place.trial}-{id}"
            folder = root / self.table.dataset / name
        if place.source and "REPLAY.FILE" in opts:
            opts = (*opts, "REPLAY.FILE", str(root / "weights" / place.source / WEIGHTS_FILE))
        opts = (*_KEEP_FEW, *opts)
        return Job.in_folder(id, place.cell.cfg_file, opts, folder, place.label)

    def _check(self, place: Place, job: Job) -> None:
        """A cell's first trial stands for the others."""
        key = place.key[:2]
        if key not in self._checked and job.id not in self.done:
            self._checked.add(key)
            check_config(job.cfg)

    @cached_property
    def _networks(self) -> dict[str, Cell]:
        """Each teacher once, with a cell that it teaches."""
        return {cell.column.pair.teacher: cell for cell in reversed(self.table.cells)}

    def _plan_teachers(self) -> dict[str, str]:
        """Fill ``teachers`` and ``missing``; returns the files by network."""
        request = self.request
        files: dict[str, str] = {}
        if TEACHER_FILE in request.opts:
            if len(self._networks) > 1:
                raise ConfigError(
                    f"{TEACHER_FILE} is one file, but these pairs have the teachers "
                    f"{', '.join(self._networks)}; choose pairs of one teacher with --pairs"
                )
            return files
        for name, cell in reversed(self._networks.items()):
            published = _published_file(cell, self.table.dataset)
            if published is not None and published.exists():
                files[name] = str(published)
                continue
            job = self._teacher_job(name)
            files[name] = str(job.folder / "student_latest")
            # Elsewhere than on CIFAR-100 there is nothing that could be downloaded.
            if published is None or request.train_teachers or job.result() is not None:
                self.teachers[name] = job
            else:
                self.missing[name] = published
        return files

    def _teacher_job(self, name: str) -> Job:
        """One training for all tables, trials and methods."""
        request, dataset = self.request, self.table.dataset
        cfg_file, opts = teacher_config(dataset, name)
        opts = (
            *opts,
            *(x for pair in _pairs(request.opts) if pair[0] in _SHARED_KEYS for x in pair),
        )
        if request.teacher_epochs is not None:
            opts = (*opts, *scaled_epochs(load_cfg(cfg_file, opts), request.teacher_epochs))
        opts = (*_KEEP_FEW, *opts, SEED, str(derive_seed(0, TEACHERS, name) % 2**31))
        id = identity(load_cfg(cfg_file, opts))
        found = find_folders(request.prefix, [id])
        place = Path(request.prefix) / TEACHERS / dataset / f"teacher-{name}-{id}"
        return Job.in_folder(id, cfg_file, opts, found.get(id, place), f"teacher-{name}")


def _pairs(opts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return zip(opts[0::2], opts[1::2], strict=True)


def _published_file(cell: Cell, dataset: str) -> Path | None:
    """Where a cell's configuration expects its teacher; None if its data set has none."""
    registered = registered_checkpoint(dataset, cell.column.pair.teacher)
    if registered is None:
        return None
    configured = load_cfg(cell.cfg_file, cell.opts).DISTILLER.TEACHER_CKPT
    return Path(configured) if configured else registered
