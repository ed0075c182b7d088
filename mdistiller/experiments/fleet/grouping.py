"""Which runs of a plan one process can train side by side, sharing batches and teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mdistiller.experiments.job import Job
from mdistiller.experiments.plan import Plan, Run

from .fleet import disagreements, fleet_settings, refuse_wandb

# As fleet size: all runs that fit together.
ALL = 0


def plan_fleets(
    plan: Plan, jobs: Iterable[Job], size: int = ALL
) -> tuple[list[tuple[Job, ...]], list[str]]:
    """Divide the students of a plan into processes.

    Args:
        jobs: those to be trained, of the plan.
        size: the most that one process trains, 1 or greater, or :data:`ALL`.

    Returns:
        The jobs of each process, in the plan's order, and a remark on every group of pair and
        trial whose runs do not all fit together.

    Raises:
        ConfigError: LOG.WANDB is on.
    """
    wanted, fleets, remarks = set(jobs), [], []
    if size == 1:
        return [(run.job,) for run in plan.runs if run.job in wanted], []
    for (pair, trial), runs in plan.groups().items():
        runs = [run for run in runs if run.job in wanted]
        refuse_wandb(run.job.cfg for run in runs)
        kinds = _by_settings(runs)
        if len(kinds) > 1:
            keys = ", ".join(disagreements(fleet_settings(k[0].cfg) for k in kinds))
            remarks.append(f"{pair}, trial {trial}: {len(kinds)} kinds of runs, by {keys}")
        for kind in kinds:
            fleets += _evenly(kind, size or len(kind))
    return fleets, remarks


def _by_settings(runs: Iterable[Run]) -> list[list[Job]]:
    kinds: list[tuple[dict[str, Any], list[Job]]] = []
    for run in runs:
        settings = fleet_settings(run.job.cfg)
        kind = next((jobs for known, jobs in kinds if known == settings), None)
        if kind is None:
            kind = []
            kinds.append((settings, kind))
        kind.append(run.job)
    return [jobs for _, jobs in kinds]


def _evenly(jobs: list[Job], size: int) -> list[tuple[Job, ...]]:
    """As few parts of at most ``size`` as can be, whose sizes differ by one at most."""
    parts = -(-len(jobs) // size)
    bounds = [len(jobs) * number // parts for number in range(parts + 1)]
    return [tuple(jobs[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
