"""Several configurations over several seeds, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .job import Job
from .launch import launch

_TEACHER_FILE = "DISTILLER.TEACHER_CKPT"


@dataclass(frozen=True)
class Cell:
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
    cfg_files: list[str],
    seeds: list[int],
    *,
    teacher: str | None = None,
    opts: tuple[str, ...] = (),
    workers: int = 1,
) -> list[Cell]:
    """Train every configuration with every seed (unless done already) and collect the results.

    Args:
        cfg_files: configurations; the first is the one that others are compared with.
        seeds: values of EXPERIMENT.SEED, the same for all, so that runs are paired: the same
            initial student and the same order and augmentation of its batches.
        teacher: configuration to train before all others, once; the students then load what it
            left, unless ``opts`` names another DISTILLER.TEACHER_CKPT.
        opts: further overrides of the students' configurations; LOG.PREFIX and the like.
        workers: processes at a time.
    """
    if teacher:
        job = Job(teacher, _shared(opts))
        launch([job])
        if _TEACHER_FILE not in opts[0::2]:
            opts = (*opts, _TEACHER_FILE, str(job.folder / "student_latest"))
    grid = {c: [Job(c, (*opts, "EXPERIMENT.SEED", str(s))) for s in seeds] for c in cfg_files}
    # Seed by seed, so that an interrupted comparison is one of fewer seeds.
    launch([grid[c][i] for i in range(len(seeds)) for c in cfg_files], workers)
    return [_collect(c, jobs) for c, jobs in grid.items()]


def _shared(opts: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides that the teacher's run takes over: where files lie, on which device."""
    keys = ("LOG.PREFIX", "DATASET.ROOT", "SOLVER.DEVICE")
    pairs = zip(opts[0::2], opts[1::2], strict=True)
    return tuple(x for key, value in pairs if key in keys for x in (key, value))


def _collect(cfg_file: str, jobs: list[Job]) -> Cell:
    results = [job.result() for job in jobs]
    columns = (np.array([r[key] for r in results]) for key in ("last_top1", "best_top1", "seconds"))
    return Cell(cfg_file, *columns)


def format_table(cells: list[Cell]) -> str:
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
