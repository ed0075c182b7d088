"""The process that trains several jobs side by side: ``... fleet_process PARENT JOB JOB ...``.

Each JOB is a JSON list of a configuration file and its overrides. Each job is continued or
started, prints to its own log and is recorded as failed by itself; the process lives no longer
than its parent (see :mod:`~.tether`).
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from mdistiller.experiments.tether import tether_to, wait_for_lock


def main(parent: int, members: list[str]) -> None:
    """Train to the end those of the jobs that are not done yet.

    Exit status: 1 if one of them failed, 130 or 143 if a signal stopped them.
    """
    tether_to(parent)
    # Only now, for they take seconds, in which the parent may end.
    from mdistiller.cli import exit_on_error
    from mdistiller.experiments.job import Job

    jobs = [Job(cfg_file, tuple(opts)) for cfg_file, *opts in map(json.loads, members)]
    if waiting := [job for job in jobs if job.result() is None]:
        exit_on_error(_train)(waiting)


def _train(jobs: list) -> None:
    from mdistiller.engine.runtime.signals import end_on_signals
    from mdistiller.errors import InterruptedRun, MdistillerError

    from .fleet import Fleet, Member

    end_on_signals()
    for job in jobs:
        wait_for_lock(job)
    with ExitStack() as files:
        job_of = {}
        for job in jobs:
            log = files.enter_context(job.log.open("a", buffering=1))
            job_of[Member(job.cfg, job.opts, job.is_resumable(), log)] = job

        def ended(member: Member) -> None:
            if member.error is not None and not isinstance(member.error, InterruptedRun):
                job_of[member].mark_failed(getattr(member.error, "exit_code", 1))

        Fleet(list(job_of)).train(ended)
    failed = [job.folder.name for member, job in job_of.items() if member.error is not None]
    if failed:
        raise MdistillerError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
