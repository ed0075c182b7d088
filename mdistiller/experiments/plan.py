"""The runs of a table: which configuration, which seed, which folder, which teacher first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mdistiller.config import load_cfg
from mdistiller.dataset import registered_checkpoint
from mdistiller.engine.check import check_config
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.seeding import derive_seed

from .job import Job, identity_hash
from .tables import Cell, Table, build_table
from .tables.pairs import teacher_config

TEACHERS = "teachers"
_TEACHER_FILE = "DISTILLER.TEACHER_CKPT"

# The runner's own; the option to use instead, if there is one.
_RESERVED = {
    "EXPERIMENT.SEED": "",
    "EXPERIMENT.PROJECT": "",
    "EXPERIMENT.NAME": "",
    "DATASET.TYPE": "; use --dataset",
    "LOG.PREFIX": "; use --prefix",
}
# The latest and the best checkpoint suffice for every table; a user's override wins.
_KEEP_FEW = ("LOG.SAVE_CHECKPOINT_FREQ", "1000000")
# Overrides that hold for a teacher's training, too.
_SHARED_KEYS = ("DATASET.ROOT", "DATASET.NUM_WORKERS", "SOLVER.DEVICE")


@dataclass(frozen=True)
class Request:
    """What is to be reproduced.

    Attributes:
        table, dataset, pairs, methods: as for :func:`~.tables.build_table`.
        trials: per cell; None: the table's own number.
        epochs, teacher_epochs: instead of the configurations', the decay stages in proportion.
        prefix: folder for all results.
        opts: overrides of every student's configuration.
        train_teachers: train the teachers whose checkpoint is missing.
        record: folder for records that outlive the results' folders; None for no records.
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

    @property
    def root(self) -> Path:
        return Path(self.prefix) / self.table.lower() / self.dataset.lower()


@dataclass(frozen=True)
class Run:
    """One trial of one cell; runs of the same ``group`` share teacher, seed and data order."""

    cell: Cell
    trial: int
    seed: int
    job: Job
    teacher: Job | None

    @property
    def group(self) -> tuple[str, int]:
        return self.cell.column.pair.key, self.trial


@dataclass(frozen=True)
class Plan:
    """All runs of a request, trial by trial, so that a plan cut short is one of fewer trials.

    Attributes:
        teachers: trainings that must be done before, by the teacher's name.
        teacher_files: checkpoints, by the teacher's name.
        missing: files of teachers that are neither there nor to be trained, by name.
    """

    request: Request
    table: Table
    runs: tuple[Run, ...]
    teachers: dict[str, Job]
    teacher_files: dict[str, str]
    missing: dict[str, Path]

    @property
    def trials(self) -> range:
        return range(self.request.trials or self.table.trials)

    def with_runs(self, runs: Sequence[Run]) -> Plan:
        """A plan with these runs as well."""
        columns = [column.key for column in self.table.columns]
        ordered = sorted(
            (*self.runs, *runs), key=lambda r: (r.trial, columns.index(r.cell.column.key))
        )
        return replace(self, runs=tuple(ordered))

    @cached_property
    def jobs(self) -> list[Job]:
        """Teachers first."""
        return [*self.teachers.values(), *(run.job for run in self.runs)]

    @cached_property
    def needs(self) -> dict[Job, Job]:
        return {run.job: run.teacher for run in self.runs if run.teacher}

    def groups(self) -> dict[tuple[str, int], list[Run]]:
        """Runs by pair and trial."""
        found: dict[tuple[str, int], list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.group, []).append(run)
        return found

    def refuse_missing_teachers(self) -> None:
        """Raises CheckpointError if a teacher is missing."""
        if self.missing:
            files = ", ".join(f"{name} ({path})" for name, path in self.missing.items())
            raise CheckpointError(
                f"missing teachers: {files}; `python tools/download_teachers.py` fetches the "
                "published ones (all but ResNet101), --train-teachers trains what is missing"
            )


def trial_seed(table: str, pair: str, trial: int) -> int:
    """EXPERIMENT.SEED of a trial: the same for all methods and weightings on a pair.

    The same initial student and the same order and augmentation of its batches make the
    differences between them paired.
    """
    return derive_seed(0, table, pair, trial) % 2**31


def scaled_epochs(cfg: Any, epochs: int) -> tuple[str, ...]:
    """Overrides for a training of ``epochs``, with the decay stages at the same fractions of it."""
    stages = [round(stage * epochs / cfg.SOLVER.EPOCHS) for stage in cfg.SOLVER.LR_DECAY_STAGES]
    kept = sorted({stage for stage in stages if 1 <= stage < epochs})
    return ("SOLVER.EPOCHS", str(epochs), "SOLVER.LR_DECAY_STAGES", str(kept))


def make_plan(request: Request) -> Plan:
    """Lay out all runs; nothing is written.

    Raises:
        ConfigError: an unknown name, a wrong override, or a cell that cannot be trained.
    """
    _check_request(request)
    table = build_table(request.table, request.dataset, request.pairs, request.methods)
    teachers, files, missing = _plan_teachers(request, table)
    plan = Plan(request, table, (), teachers, files, missing)
    for cell in table.cells:
        if cell.row.derived is None:
            cell_runs = [plan_run(plan, cell, trial) for trial in plan.trials]
            check_config(cell_runs[0].job.cfg)
            plan = plan.with_runs(cell_runs)
    return plan


def _check_request(request: Request) -> None:
    for name in ("trials", "epochs", "teacher_epochs"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be 1 or greater, not {value}")
    if len(request.opts) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE, but {request.opts[-1]!r} is alone")
    for key in request.opts[0::2]:
        if key in _RESERVED:
            raise ConfigError(f"{key} is set by the plan{_RESERVED[key]}")


def plan_run(plan: Plan, cell: Cell, trial: int, derived: Sequence[str] = ()) -> Run:
    """A trial of a cell, with overrides of its own in ``derived``."""
    request, teacher = plan.request, cell.column.pair.teacher
    opts = cell_opts(request, cell)
    if _TEACHER_FILE not in request.opts:
        opts = (*opts, _TEACHER_FILE, plan.teacher_files[teacher])
    seed = trial_seed(plan.table.seeds, cell.column.pair.key, trial)
    job = _place(
        f"{cell.row.key}-{cell.column.key}-t{trial}",
        cell.cfg_file,
        (*opts, *derived, "EXPERIMENT.SEED", str(seed)),
        request.root,
    )
    return Run(cell, trial, seed, job, plan.teachers.get(teacher))


def cell_opts(request: Request, cell: Cell) -> tuple[str, ...]:
    """The overrides that say what a cell is: its own, then the request's."""
    return (*cell.opts, *request_opts(request, cell))


def request_opts(request: Request, cell: Cell) -> tuple[str, ...]:
    """The overrides of --epochs, then the user's."""
    scaled = ()
    if request.epochs is not None:
        scaled = scaled_epochs(load_cfg(cell.cfg_file, cell.opts), request.epochs)
    return (*scaled, *request.opts)


def _place(name: str, cfg_file: str, opts: Sequence[str], root: Path) -> Job:
    """The job in ``root``/``name``-<hash of what it computes>."""
    name = f"{name}-{identity_hash(load_cfg(cfg_file, opts))}"
    place = ("LOG.PREFIX", str(root.parent), "EXPERIMENT.PROJECT", root.name)
    return Job(cfg_file, (*_KEEP_FEW, *opts, *place, "EXPERIMENT.NAME", name))


# ---- teachers --------------------------------------------------------------------------------


def _plan_teachers(
    request: Request, table: Table
) -> tuple[dict[str, Job], dict[str, str], dict[str, Path]]:
    """Trainings, checkpoint files and missing files of the table's teachers, by name."""
    jobs, files, missing = {}, {}, {}
    if _TEACHER_FILE in request.opts:
        _refuse_two_teachers(table)
        return jobs, files, missing
    for name, cell in _by_teacher(table):
        published = _published_file(cell, table.dataset)
        if published is not None and published.exists():
            files[name] = str(published)
            continue
        job = _teacher_job(request, table.dataset, name)
        files[name] = str(job.folder / "student_latest")
        # Elsewhere than on CIFAR-100 there is nothing that could be downloaded.
        if published is None or request.train_teachers or job.result() is not None:
            jobs[name] = job
        else:
            missing[name] = published
    return jobs, files, missing


def _by_teacher(table: Table) -> Iterator[tuple[str, Cell]]:
    """Each teacher once, with a cell that it teaches."""
    seen = set()
    for cell in table.cells:
        name = cell.column.pair.teacher
        if name not in seen:
            seen.add(name)
            yield name, cell


def _refuse_two_teachers(table: Table) -> None:
    names = [name for name, _ in _by_teacher(table)]
    if len(names) > 1:
        raise ConfigError(
            f"{_TEACHER_FILE} is one file, but these pairs have the teachers {', '.join(names)}; "
            "choose pairs of one teacher with --pairs"
        )


def _published_file(cell: Cell, dataset: str) -> Path | None:
    """Where a cell's configuration expects its teacher; None if its data set has none."""
    name = cell.column.pair.teacher
    registered = registered_checkpoint(dataset, name)
    if registered is None:
        return None
    configured = load_cfg(cell.cfg_file, cell.opts).DISTILLER.TEACHER_CKPT
    return Path(configured) if configured else registered


def _teacher_job(request: Request, dataset: str, name: str) -> Job:
    """One training for all tables, trials and methods."""
    cfg_file, opts = teacher_config(dataset, name)
    pairs = zip(request.opts[0::2], request.opts[1::2], strict=True)
    opts = (*opts, *(x for pair in pairs if pair[0] in _SHARED_KEYS for x in pair))
    if request.teacher_epochs is not None:
        opts = (*opts, *scaled_epochs(load_cfg(cfg_file, opts), request.teacher_epochs))
    seed = str(derive_seed(0, TEACHERS, name) % 2**31)
    root = Path(request.prefix) / TEACHERS / dataset
    return _place(f"teacher-{name}", cfg_file, (*opts, "EXPERIMENT.SEED", seed), root)


def relative_folder(job: Job, root: Path) -> str:
    """A job's folder as seen from ``root``."""
    return os.path.relpath(job.folder, root)
