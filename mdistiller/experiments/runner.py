"""The loop that sees many jobs through, whatever becomes of single ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple, Protocol

from mdistiller.engine.rundir.folder import claim, is_locked

from .job import KILLED, Job

_POLL_SECONDS = 0.2
_LOOK_ELSEWHERE_SECONDS = 5.0

# How often a run is tried again whose process was killed: by the kernel for want of memory, by
# somebody, or because it hung. One that is killed each time is not left to run for ever.
RETRIES = 3

# Ctrl-C and SIGTERM, as the training reports them and as the shell does.
_INTERRUPTED = (130, 143, -2, -15)


class Backend(Protocol):
    """Where jobs are trained."""

    @property
    def size(self) -> int:
        """How many processes run at a time."""

    def has_room(self) -> bool: ...

    def start(self, jobs: Sequence[Job]) -> None:
        """Train them in one process."""

    def finished(self) -> list[tuple[Job, int]]:
        """The jobs of processes that have ended since the last call, with the exit status."""

    def stop(self) -> None: ...


class Work(NamedTuple):
    """What there is to do.

    Attributes:
        ready: jobs that can be trained now, by process, in order.
        waiting_for: jobs for which others wait.
    """

    ready: list[tuple[Job, ...]]
    waiting_for: frozenset[str] = frozenset()


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        done: trained to the end, by this call or by another process meanwhile.
        failed: ended with an error.
        stopped: ended by a signal that did not come from here; they can be continued.
        elsewhere: another process is training them.
    """

    done: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    stopped: list[Job] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)


class Runner:
    """Trains what is ready, asks again, and so on until nothing is left that can be trained.

    Args:
        work: called again whenever a job has ended; what it gave before may be given again.
        backend: where jobs are trained.
        observe: called as ``observe(event, job)`` with "started", "killed" (and
            to be tried again) or the name of an :class:`Outcome` list.
        tick: called several times a second.
        stop_at_failure: start nothing more after a job has failed.
    """

    def __init__(
        self,
        work: Callable[[], Work],
        backend: Backend,
        *,
        observe: Callable[[str, Job], None] = lambda event, job: None,
        tick: Callable[[], None] = lambda: None,
        stop_at_failure: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self._ask, self._backend = work, backend
        self._observe, self._tick = observe, tick
        self._stop_at_failure = stop_at_failure
        self._claims: dict[Job, IO[str]] = {}
        self._killed: Counter[Job] = Counter()

    def run(self) -> Outcome:
        """See all jobs through.

        On KeyboardInterrupt the trainings are stopped, so that they can be continued, and it is
        raised again.
        """
        work, look_at = self._ask(), 0.0
        try:
            while True:
                if self._start_some(work):
                    work = self._ask()  # some were found to be done
                ended = self._backend.finished()
                for job, code in ended:
                    self._finish(job, code)
                news = bool(ended)
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_ELSEWHERE_SECONDS
                    news = self._look_elsewhere() or news
                if news:
                    work = self._ask()
                elif not self._claims and not self._startable(work) and not self._awaited(work):
                    return self.outcome
                self._tick()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._backend.stop()
            raise
        finally:
            for file in self._claims.values():
                file.close()

    def _startable(self, work: Work) -> list[tuple[Job, ...]]:
        """Of what is ready that which has not been tried."""
        if self._stop_at_failure and self.outcome.failed:
            return []
        o = self.outcome
        tried = {*self._claims, *o.done, *o.failed, *o.stopped, *o.elsewhere}
        fleets = (tuple(job for job in fleet if job not in tried) for fleet in work.ready)
        return [fleet for fleet in fleets if fleet]

    def _awaited(self, work: Work) -> bool:
        """Whether another process trains what jobs here wait for."""
        return any(job.id in work.waiting_for for job in self.outcome.elsewhere)

    def _start_some(self, work: Work) -> bool:
        """Start what there is room for; whether a job turned out to be done already."""
        before = len(self.outcome.done)
        for fleet in self._startable(work):
            if not self._backend.has_room():
                break
            jobs = tuple(job for job in fleet if self._claim(job))
            if jobs:
                self._backend.start(jobs)
            for job in jobs:
                self._observe("started", job)
        return len(self.outcome.done) > before

    def _claim(self, job: Job) -> bool:
        """Take a job, or settle it as what it has become."""
        file = claim(job.claim_file)
        if file is None or is_locked(job.folder / ".lock"):
            if file:
                file.close()
            self._settle("elsewhere", job)
            return False
        # Another process may have brought it to an end since the work was asked for.
        if (state := job.state_of_files()) in ("done", "failed"):
            file.close()
            self._settle(state, job)
            return False
        self._claims[job] = file
        return True

    def _finish(self, job: Job, code: int) -> None:
        # Judged while it is still claimed: nobody else can have started it again.
        state = job.state_of_files()
        if state == "done":
            job.forget_failure()
        elif is_locked(job.folder / ".lock"):
            state = "elsewhere"
            job.forget_failure()
        elif state != "failed" and code in KILLED and self._killed[job] < RETRIES:
            self._killed[job] += 1
            self._claims.pop(job).close()
            self._observe("killed", job)
            return
        # A fleet knows which of its members have failed.
        elif state != "failed" and code in _INTERRUPTED:
            state = "stopped"
        elif state != "failed":
            state = "failed"
            job.mark_failed(code)
        self._claims.pop(job).close()
        self._settle(state, job)

    def _settle(self, event: str, job: Job) -> None:
        getattr(self.outcome, event).append(job)
        self._observe(event, job)

    def _look_elsewhere(self) -> bool:
        """Take back jobs that other processes have left or finished; whether there are some."""
        free = [job for job in self.outcome.elsewhere if job.state != "running"]
        for job in free:
            self.outcome.elsewhere.remove(job)
            if job.state == "done":
                self._settle("done", job)
        return bool(free)
