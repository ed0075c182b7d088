"""Which runs one process can train side by side, sharing batches and teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mdistiller.experiments.job import Job

from .fleet import disagreements, fleet_settings, refuse_wandb

# As fleet size: all runs that fit together.
ALL = 0


def plan_fleets(
    groups: Iterable[Sequence[Job]], size: int = ALL
) -> tuple[list[tuple[Job, ...]], list[str]]:
    """Divide runs into processes.

    Args:
        groups: runs of one seed and one teacher each.
        size: the most that one process trains, 1 or greater, or :data:`ALL`.

    Returns:
        The jobs of each process, in order, and a remark on every group whose runs do not all
        fit together.

    Raises:
        ConfigError: LOG.WANDB is on.
    """
    groups = list(groups)
    if size == 1:
        return [(job,) for jobs in groups for job in jobs], []
    fleets, remarks = [], []
    for jobs in groups:
        refuse_wandb(job.cfg for job in jobs)
        kinds: list[list[Job]] = []
        for job in jobs:
            settings = fleet_settings(job.cfg)
            fits = (kind for kind in kinds if fleet_settings(kind[0].cfg) == settings)
            if (kind := next(fits, None)) is None:
                kinds.append(kind := [])
            kind.append(job)
        if len(kinds) > 1:
            keys = ", ".join(disagreements(fleet_settings(kind[0].cfg) for kind in kinds))
            first = jobs[0].title
            remarks.append(f"{first} and {len(jobs) - 1} more: {len(kinds)} processes, by {keys}")
        for kind in kinds:
            fleets += _evenly(kind, size or len(kind))
    return fleets, remarks


def _evenly(jobs: list[Job], size: int) -> list[tuple[Job, ...]]:
    """As few parts of at most ``size`` as can be, whose sizes differ by one at most."""
    parts = -(-len(jobs) // size)
    bounds = [len(jobs) * number // parts for number in range(parts + 1)]
    return [tuple(jobs[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
