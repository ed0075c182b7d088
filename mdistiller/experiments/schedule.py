"""The loop that sees many jobs through, whatever becomes of single ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Protocol

from mdistiller.engine.rundir.folder import claim, is_locked

from .job import Job

_POLL_SECONDS = 0.2
_LOOK_ELSEWHERE_SECONDS = 5.0

# Ctrl-C and SIGTERM, as the training reports them and as the shell does.
_INTERRUPTED = (130, 143, -2, -15)

# The engine's words for a folder in which another process trains.
_LOCKED_OUT = "another process is training in"


class Backend(Protocol):
    """Where jobs are trained."""

    size: int  # how many at a time

    def has_room(self) -> bool: ...

    def start(self, jobs: tuple[Job, ...]) -> None: ...  # in one process

    def finished(self) -> list[tuple[Job, int]]: ...

    def stop(self) -> None: ...


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        done: trained to the end, by this call or by another process meanwhile.
        failed: ended with an error.
        stopped: ended by a signal that did not come from here; they can be continued.
        elsewhere: another process is training them.
        blocked: what they need has failed.
    """

    done: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    stopped: list[Job] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)
    blocked: list[Job] = field(default_factory=list)


class Schedule:
    """Runs jobs on a backend, in order, each when what it needs is done.

    Args:
        jobs: those that are not done yet.
        backend: where they are trained.
        fleets: jobs that one process trains side by side; those not in any are alone.
        needs: the job that must be done before, for jobs that need one. It is among ``jobs``,
            or done already, or has failed before. The same for all jobs of a fleet.
        observe: called as ``observe(event, job)`` with "started" or the name of an
            :class:`Outcome` list.
        tick: called several times a second.
        stop_at_failure: start nothing more after a job has failed.
    """

    def __init__(
        self,
        jobs: list[Job],
        backend: Backend,
        *,
        fleets: Iterable[tuple[Job, ...]] = (),
        needs: Mapping[Job, Job] | None = None,
        observe: Callable[[str, Job], None] = lambda event, job: None,
        tick: Callable[[], None] = lambda: None,
        stop_at_failure: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self._waiting = list(jobs)
        self._backend = backend
        self._fleets = {job: fleet for fleet in fleets for job in fleet}
        self._needs = dict(needs or {})
        self._observe, self._tick = observe, tick
        self._stop_at_failure = stop_at_failure
        self._claims: dict[Job, IO[str]] = {}
        self._met: set[Job] = set()
        self._next_look = 0.0

    def add(self, fleet: tuple[Job, ...], need: Job | None = None) -> None:
        """See more jobs through, in one process, before those that have not been started."""
        self._waiting[:0] = fleet
        for job in fleet:
            self._fleets[job] = fleet
            if need is not None:
                self._needs[job] = need

    def run(self) -> Outcome:
        """See all jobs through.

        On KeyboardInterrupt the trainings are stopped, so that they can be continued, and it is
        raised again.
        """
        try:
            while self._claims or self._waiting:
                if not (self._stop_at_failure and self.outcome.failed):
                    self._start_some()
                elif not self._claims:
                    break
                for job, code in self._backend.finished():
                    self._finish(job, code)
                self._tick()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._backend.stop()
            raise
        finally:
            for file in self._claims.values():
                file.close()
        return self.outcome

    def _start_some(self) -> None:
        self._look_elsewhere()
        for job in list(self._waiting):
            if job not in self._waiting:  # it has started with an earlier one
                continue
            if not self._backend.has_room():
                return
            need = self._needs.get(job)
            if need is not None and self._is_hopeless(need):
                self._settle("blocked", job)
            elif need is None or self._is_done(need):
                self._start(self._fleets.get(job, (job,)))

    def _is_done(self, need: Job) -> bool:
        pending = need in self._claims or need in self._waiting or need in self.outcome.elsewhere
        # Remembered, for looking means reading files, several times a second.
        if need not in self._met and not pending and need.result() is not None:
            self._met.add(need)
        return need in self._met

    def _is_hopeless(self, need: Job) -> bool:
        return need in self.outcome.failed + self.outcome.stopped or need.failure_file.exists()

    def _start(self, fleet: tuple[Job, ...]) -> None:
        """Those of a fleet that are free."""
        jobs = tuple(job for job in fleet if job in self._waiting and self._claim(job))
        if not jobs:
            return
        self._backend.start(jobs)
        for job in jobs:
            self._observe("started", job)

    def _claim(self, job: Job) -> bool:
        """Take a waiting job, or settle it as what it has become."""
        file = claim(job.claim_file)
        if file is None or is_locked(job.folder / ".lock"):
            if file:
                file.close()
            self._settle("elsewhere", job)
            return False
        # Another process may have brought it to an end since the plan was made.
        event = "done" if job.result() is not None else None
        event = event or ("failed" if job.failure_file.exists() else None)
        if event:
            file.close()
            self._settle(event, job)
            return False
        self._waiting.remove(job)
        self._claims[job] = file
        return True

    def _finish(self, job: Job, code: int) -> None:
        # Judged while it is still claimed: nobody else can have started it again.
        if job.result() is not None:
            event = "done"
            job.forget_failure()
        elif any(_LOCKED_OUT in line for line in job.log_tail()) and code:
            event = "elsewhere"
            job.forget_failure()
        elif job.failure_file.exists():  # a fleet knows which of its members have failed
            event = "failed"
        elif code in _INTERRUPTED:
            event = "stopped"
        else:
            event = "failed"
            job.mark_failed(code)
        self._claims.pop(job).close()
        self._settle(event, job)

    def _settle(self, event: str, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        getattr(self.outcome, event).append(job)
        self._observe(event, job)

    def _look_elsewhere(self) -> None:
        """Take jobs back that other processes have left, or that they have finished."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_ELSEWHERE_SECONDS
        for job in list(self.outcome.elsewhere):
            if job.state() == "running":
                continue
            self.outcome.elsewhere.remove(job)
            # In front: others may need it.
            self._waiting.insert(0, job)
