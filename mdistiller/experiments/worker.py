"""The process that trains one job or several side by side.

``python -m mdistiller.experiments.worker PARENT JOB ...``, each JOB the JSON list of its id, its
configuration file and its overrides. Each is continued or started, prints to its own log and is
marked as failed by itself. The process lives no longer than PARENT: a training whose parent was
killed would go on unseen and hold the lock on its folder, and nobody could take the run over.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mdistiller.cli import exit_on_error
from mdistiller.engine.caching.answers import complete
from mdistiller.engine.run import run_training
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.engine.runtime.signals import end_on_signals
from mdistiller.errors import InterruptedRun, MdistillerError

from .fleet.fleet import Fleet, Member
from .job import Job

_PR_SET_PDEATHSIG = 1

# Data-loader processes of a training that was killed hold its lock until they notice that.
_LOCK_SECONDS = 20.0


def main(parent: int, members: Sequence[str]) -> None:
    """Train to the end those of the jobs that are not done yet.

    Exit status: 1 (2 for a configuration) if one of them failed, 130 or 143 if a signal came.
    """
    _live_no_longer_than(parent)
    raw = map(json.loads, members)
    jobs = [Job(id, cfg_file, tuple(opts), Path(folder)) for id, cfg_file, folder, *opts in raw]
    if waiting := [job for job in jobs if job.result() is None]:
        exit_on_error(_train)(waiting)


def _live_no_longer_than(parent: int) -> None:
    """Let the kernel kill this process when ``parent`` ends; Linux only, elsewhere no effect.

    A kill is safe at any moment, for checkpoints are written whole or not at all.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended while Python imported all this.
    if os.getppid() != parent:
        sys.exit("error: the process that started this training has ended")


def _wait_for_lock(job: Job) -> None:
    """Until what is left of an earlier process of ``job`` has ended, if that is soon."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while is_locked(job.folder / ".lock") and time.monotonic() < deadline:
        time.sleep(0.2)


def _train(jobs: list[Job]) -> None:
    end_on_signals()
    for job in jobs:
        _wait_for_lock(job)
        if job.cfg.DISTILLER.TEACHER_CACHE:
            complete(job.cfg)
    if len(jobs) == 1:
        (job,) = jobs
        run_training(job.cfg, job.is_resumable())
        return
    with ExitStack() as files:
        job_of = {}
        for job in jobs:
            log = files.enter_context(job.log.open("a", buffering=1, encoding="utf-8"))
            job_of[Member(job.cfg, job.is_resumable(), log)] = job

        def ended(member: Member) -> None:
            if member.error is not None and not isinstance(member.error, InterruptedRun):
                job_of[member].mark_failed(getattr(member.error, "exit_code", 1))

        Fleet(list(job_of)).train(ended)
    failed = [job.title for member, job in job_of.items() if member.error is not None]
    if failed:
        raise MdistillerError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
