"""Runs trainings as processes of their own, several at a time, each at most once."""

from __future__ import annotations

import time

from mdistiller.errors import MdistillerError

from .job import Job
from .local_backend import LocalBackend, local_slots
from .schedule import Schedule


def launch(jobs: list[Job], workers: int = 1) -> None:
    """Train every job that is not done yet.

    Args:
        jobs: run in this order.
        workers: how many at a time; the processor's threads are divided among them.

    Raises:
        MdistillerError: a job failed, was stopped or is trained by another process; names its
            log and the log's last lines. The others that had started are finished first, and
            none of the finished is repeated next time.
    """
    waiting = [job for job in jobs if job.result() is None]
    done, total = len(jobs) - len(waiting), len(jobs)
    began: dict[Job, float] = {}

    def observe(event: str, job: Job) -> None:
        nonlocal done
        if event == "started":
            began[job] = time.monotonic()
        elif event == "done":
            done += 1
            seconds = time.monotonic() - began.get(job, time.monotonic())
            print(f"[{done}/{total}] {job.folder} in {seconds:.0f} s", flush=True)

    for job in waiting:
        job.forget_failure()
    backend = LocalBackend(local_slots(workers, "cpu"))
    outcome = Schedule(waiting, backend, observe=observe, stop_at_failure=True).run()
    if outcome.failed:
        raise MdistillerError(outcome.failed[0].describe_failure())
    for job in outcome.stopped:
        raise MdistillerError(f"{job.folder} was stopped by a signal; run this again to continue")
    for job in outcome.elsewhere:
        raise MdistillerError(f"another process is training in {job.folder}; wait for it")
