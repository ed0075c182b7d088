"""What a person sees while many runs are trained."""

from __future__ import annotations

import time

from .estimate import work_of
from .job import Job

_LINE_SECONDS = 60.0
_LOOK_SECONDS = 10.0
# Before this share of the work is done, its pace says nothing yet.
_ENOUGH = 0.005


class Board:
    """Prints a line for every run that ends, and once a minute how far all of them are.

    Args:
        jobs: the whole plan.
        pending: those of them that are to be trained now.
    """

    def __init__(self, jobs: list[Job], pending: list[Job]) -> None:
        self._total, self._done = len(jobs), len(jobs) - len(pending)
        self._work = {job: work_of(job.cfg).total for job in pending}
        # Epochs that earlier calls have trained are no pace of this one.
        self._before = {job: self._share(job) for job in pending if job.is_resumable()}
        self._left = set(pending)
        self._running: dict[Job, float] = {}
        self._shares: dict[Job, float] = {}
        self._began = time.monotonic()
        self._next_line, self._next_look = self._began + _LINE_SECONDS, self._began

    def add(self, job: Job) -> None:
        """One more job to be trained."""
        self._total += 1
        self._work[job] = work_of(job.cfg).total
        self._left.add(job)
        if job.is_resumable():
            self._before[job] = self._share(job)

    def observe(self, event: str, job: Job) -> None:
        """Of :class:`~.schedule.Schedule`."""
        if event == "started":
            self._running[job] = time.monotonic()
            return
        began = self._running.pop(job, None)
        if event != "elsewhere":
            self._left.discard(job)
        if event == "done":
            self._done += 1
        words = {
            "failed": f"FAILED, see {job.log}",
            "stopped": "stopped by a signal, can be continued",
            "elsewhere": "is being trained by another process",
            "blocked": "cannot start, its teacher is not there",
        }
        text = words.get(event, "done")
        if event == "done" and began is not None:
            result = job.result() or {}
            text = (
                f"{result.get('last_top1', float('nan')):.2f} % after {duration(self._took(began))}"
            )
        print(f"[{self._done}/{self._total}] {job.folder.name}: {text}{self._eta()}", flush=True)

    def tick(self) -> None:
        """Once a minute, how far the runs are."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + _LINE_SECONDS
        runs = ", ".join(
            f"{job.folder.name} {job.epochs_done()}/{job.cfg.SOLVER.EPOCHS}"
            for job in list(self._running)[:4]
        )
        more = f" and {len(self._running) - 4} more" if len(self._running) > 4 else ""
        print(
            f"{self._done}/{self._total} done, {len(self._running)} running "
            f"({runs}{more}){self._eta()}",
            flush=True,
        )

    def _eta(self) -> str:
        """Remaining time at the pace so far, in words; nothing while there is no pace."""
        if not self._left:
            return ""
        self._look()
        total = sum(self._work[j] * (1 - self._before.get(j, 0.0)) for j in self._work)
        left = sum(
            self._work[job] * (1 - self._shares.get(job, self._before.get(job, 0.0)))
            for job in self._left
        )
        done = 1 - left / total if total else 0.0
        if done < _ENOUGH:
            return ""
        return f"; about {duration(self._took(self._began) * (1 - done) / done)} left"

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        self._shares = {job: self._share(job) for job in self._running}

    @staticmethod
    def _share(job: Job) -> float:
        return min(1.0, job.epochs_done() / job.cfg.SOLVER.EPOCHS)

    @staticmethod
    def _took(began: float) -> float:
        return time.monotonic() - began


def duration(seconds: float) -> str:
    """E.g. "37 s", "4 min", "1 h 12 min", "3 d 4 h".

    >>> duration(4321)
    '1 h 12 min'
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
