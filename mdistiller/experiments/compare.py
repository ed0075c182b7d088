"""Several configurations over several seeds, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdistiller.config import run_names
from mdistiller.errors import ConfigError, MdistillerError

from .backends import LocalBackend, local_slots
from .job import Job
from .runner import Runner, Work
from .schema import TEACHER_FILE

# The overrides that the teacher's run takes over: where files lie, on which device.
_TEACHERS_TOO = ("LOG.PREFIX", "DATASET.ROOT", "SOLVER.DEVICE", "EXPERIMENT.IMPORTS")


@dataclass(frozen=True)
class Compared:
    """All seeds of one configuration.

    Attributes:
        cfg_file: the configuration.
        last, best: test top-1 in percent of the last and of the best epoch, [seeds].
        seconds: wall time of each run, [seeds].
    """

    cfg_file: str
    last: np.ndarray
    best: np.ndarray
    seconds: np.ndarray


def compare(
    cfg_files: Sequence[str],
    seeds: Sequence[int],
    *,
    teacher: str | None = None,
    opts: Sequence[str] = (),
    workers: int = 1,
) -> list[Compared]:
    """Train every configuration with every seed (unless done already) and collect the results.

    Args:
        cfg_files: configurations; the first is the one that others are compared with.
        seeds: values of EXPERIMENT.SEED, the same for all, so that runs are paired: the same
            initial student and the same order and augmentation of its batches.
        teacher: configuration to train before all others, once; the students then load what it
            left, unless ``opts`` names another DISTILLER.TEACHER_CKPT.
        opts: further overrides of the students' configurations; LOG.PREFIX and the like.
        workers: processes at a time.

    Raises:
        ConfigError: an override without a value, a seed given twice, two configurations that
            are the same.
        MdistillerError: a run failed, was stopped or is trained by another process.
    """
    opts = tuple(opts)
    if len(opts) % 2:
        raise ConfigError(f"--set takes pairs KEY VALUE, but {opts[-1]} has no value")
    if twice := sorted({seed for seed in seeds if list(seeds).count(seed) > 1}):
        raise ConfigError(f"--seeds: {twice[0]} is there twice, which would count one run as two")
    first = []
    if teacher:
        pairs = zip(opts[0::2], opts[1::2], strict=True)
        shared = (x for key, value in pairs if key in _TEACHERS_TOO for x in (key, value))
        first = [Job.of(teacher, tuple(shared))]
        if TEACHER_FILE not in opts[0::2]:
            opts = (*opts, TEACHER_FILE, str(first[0].folder / "student_latest"))
    grid = {
        cfg_file: [Job.of(cfg_file, (*opts, "EXPERIMENT.SEED", str(seed))) for seed in seeds]
        for cfg_file in cfg_files
    }
    grid = _told_apart(grid, cfg_files)
    # Seed by seed, so that an interrupted comparison is one of fewer seeds.
    _train(first, [jobs[n] for n in range(len(seeds)) for jobs in grid.values()], workers)
    return [_collect(cfg_file, jobs) for cfg_file, jobs in grid.items()]


def _told_apart(grid: dict[str, list[Job]], cfg_files: Sequence[str]) -> dict[str, list[Job]]:
    """The same jobs; those of different configurations in different folders.

    Two files can have the same EXPERIMENT.TAG, and one EXPERIMENT.NAME can be given for all.
    """
    files: dict[str, str] = {}
    for cfg_file in cfg_files:
        other = files.setdefault(grid[cfg_file][0].id, cfg_file)
        if list(cfg_files).count(cfg_file) > 1 or other != cfg_file:
            raise ConfigError(
                f"{other} and {cfg_file} are the same configuration, so that there is nothing to "
                "compare; leave one out"
            )
    jobs = [job for cell in grid.values() for job in cell]
    names = dict(zip(jobs, run_names([job.cfg for job in jobs]), strict=True))

    def own(job: Job) -> Job:
        if job.folder.name == names[job]:
            return job
        folder = job.folder.with_name(names[job])
        return Job.in_folder(job.id, job.cfg_file, job.opts, folder)

    return {cfg_file: [own(job) for job in cell] for cfg_file, cell in grid.items()}


def _train(first: list[Job], others: list[Job], workers: int) -> None:
    """Train what is not done yet, ``first`` before the others; stop at the first failure."""
    jobs = [*first, *others]
    for job in jobs:
        job.forget_failure()

    def work() -> Work:
        before = [job for job in first if job.result() is None]
        ready = before or [job for job in others if job.result() is None]
        return Work([(job,) for job in ready], frozenset(job.id for job in before))

    def observe(event: str, job: Job) -> None:
        if event == "done":
            done = sum(each.result() is not None for each in jobs)
            print(f"[{done}/{len(jobs)}] {job.folder}", flush=True)

    backend = LocalBackend(local_slots(workers, "cpu"))
    outcome = Runner(work, backend, observe=observe, stop_at_failure=True).run()
    for job in outcome.failed:
        tail = "\n  ".join(job.log_tail())
        raise MdistillerError(f"{job.folder} failed, its log {job.log} ends with:\n  {tail}")
    for job in outcome.stopped:
        raise MdistillerError(f"{job.folder} was stopped by a signal; run this again to continue")
    for job in outcome.elsewhere:
        raise MdistillerError(f"another process is training in {job.folder}; wait for it")


def _collect(cfg_file: str, jobs: Sequence[Job]) -> Compared:
    results = [_result(job) for job in jobs]
    columns = (np.array([r[key] for r in results]) for key in ("last_top1", "best_top1", "seconds"))
    return Compared(cfg_file, *columns)


def _result(job: Job) -> dict[str, Any]:
    result = job.result()
    if result is None:
        raise MdistillerError(f"{job.folder} has lost its result.json; run this again")
    return result


def format_table(cells: list[Compared]) -> str:
    """Mean and sample deviation over the seeds, and paired differences to the first row."""
    width = max(len(c.cfg_file) for c in cells)
    head = f"{'test top-1 in %':<{width}}  n  {'last epoch':>14}  {'best epoch':>14}  seconds/run"
    lines = [head, "-" * len(head)]
    for cell in cells:
        lines.append(
            f"{cell.cfg_file:<{width}}  {len(cell.last)}  {_spread(cell.last):>14}  "
            f"{_spread(cell.best):>14}  {cell.seconds.mean():>11.1f}"
        )
    for cell in cells[1:]:
        lines.append(
            f"{'  difference to the first row':<{width}}  {len(cell.last)}  "
            f"{_spread(cell.last - cells[0].last, '+'):>14}  "
            f"{_spread(cell.best - cells[0].best, '+'):>14}  "
            f"{cell.seconds.mean() / cells[0].seconds.mean():>10.2f}x"
        )
    lines.append("mean +- sample standard deviation over seeds; differences are paired by seed")
    return "\n".join(lines)


def _spread(values: np.ndarray, sign: str = "") -> str:
    deviation = f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.2f}{deviation}"
