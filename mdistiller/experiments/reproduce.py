"""A whole table or figure of the paper, from one call."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from mdistiller.errors import MdistillerError

from .estimate import Estimate, duration, makespan, size
from .job import Job
from .plan import STATES, Plan, Request
from .records import append_query
from .runner import Backend, Outcome, Runner, Work
from .speeds import Speeds

_LINE_SECONDS = 60.0
_NAMED = 4


def reproduce(
    request: Request,
    open_backend: Callable[[], Backend],
    *,
    retry_failed: bool = False,
    fleet_size: int = 1,
) -> Outcome:
    """Train every run of a table that is not done, and report as it goes.

    Args:
        request: what to train.
        open_backend: makes the backend, after everything has been checked.
        retry_failed: train those again that have failed in an earlier call.
        fleet_size: runs that one process trains side by side, see
            :func:`~.fleet.grouping.plan_fleets`.

    Raises:
        MdistillerError: something failed or is not there; what could be trained is trained.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything can be continued.
    """
    plan = Plan(request)
    plan.refuse_missing_teachers()
    append_query(request.records, plan.query)
    if retry_failed:
        for job in (*plan.jobs.values(), *plan.needed_teachers):
            job.forget_failure()
    print(headline(plan), flush=True)
    work, remarks = plan.work(fleet_size)
    for remark in remarks:
        print(f"note: {remark}")
    for use in plan.caches.uses.values():
        print(use.words)
    if fleet_size != 1 and work.ready:
        print(_in_words(work.ready), flush=True)
    outcome = Outcome()
    if work.ready:
        board = Board(plan)

        def ask() -> Work:
            return plan.work(fleet_size)[0]

        # In this order, for Ray brings a handler of SIGTERM of its own.
        with _closing(open_backend()) as backend, _interruptible():
            runner = Runner(ask, backend, observe=board.observe, tick=board.tick)
            outcome = runner.run()
    _conclude(plan, outcome)
    return outcome


class Board:
    """Records every run that ends and prints a line for it; once a minute, how far all are."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began: dict[Job, float] = {}
        self._next_line = time.monotonic() + _LINE_SECONDS

    def observe(self, event: str, job: Job) -> None:
        """Of :class:`~.runner.Runner`."""
        if event == "started":
            self._began[job] = time.monotonic()
            return
        began = self._began.pop(job, None)
        if event in ("done", "failed"):
            self._plan.settle(event, job)
        words = {
            "failed": lambda: f"FAILED: {job.last_words()}",
            "killed": lambda: f"{job.why_killed()}; it goes on in a new process",
            "stopped": lambda: "stopped by a signal, can be continued",
            "elsewhere": lambda: "is being trained by another process",
            "done": lambda: f"{self._plan.done[job.id].result['last_top1']:.2f} %",
        }[event]()
        took = f" after {duration(time.monotonic() - began)}" if began and event == "done" else ""
        print(f"[{self._progress()}] {job.title}: {words}{took}", flush=True)

    def tick(self) -> None:
        """Once a minute, how far the runs are."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + _LINE_SECONDS
        running = list(self._began)
        names = [f"{j.title} {j.epochs_done()}/{j.cfg.SOLVER.EPOCHS}" for j in running[:_NAMED]]
        more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
        print(f"{self._progress()} done, running: {', '.join(names)}{more}", flush=True)

    def _progress(self) -> str:
        places = self._plan.places
        return f"{sum(p.id in self._plan.done for p in places)}/{len(places)}"


def describe(
    request: Request,
    workers: int,
    threads: int,
    fleet_size: int = 1,
    speeds: Speeds | None = None,
) -> str:
    """The plan with the state of every run, the estimated time and the disk space.

    Args:
        workers: processes at a time.
        threads: of one process.
        fleet_size: as for :func:`reproduce`.
        speeds: of the machine that is to train; None for this one.
    """
    plan = Plan(request, write=False)
    work, remarks = plan.work(fleet_size)
    estimate = Estimate(threads, speeds)
    lines = [headline(plan), ""]
    width = max(len(p.label) for p in plan.places) + 9
    for job in plan.needed_teachers:
        lines.append(f"{job.title:<{width}}  {_state_in_words(job.state, job)}")
    for place in plan.places:
        name = f"{place.label}-{place.id}" if place.id else place.label
        if place.id is not None:
            words = _state_in_words(plan.state(place.id), plan.jobs[place.id])
        else:
            assert place.source is not None  # what it is made of, and waits for
            words = f"waits for {plan.jobs[place.source].title}"
        lines.append(f"{name:<{width}}  {words}")
    if fleet_size != 1 and work.ready:
        lines += ["", f"{_in_words(work.ready)}; those of a process share batches and teacher:"]
        lines += (f"{len(f):>4}  {f[0].title}" + _to_last(f) for f in work.ready)
    remarks = [*remarks, *_other_budgets(plan)]
    lines += ["", *_costs(plan, work, workers, estimate), *(f"note: {r}" for r in remarks)]
    if plan.missing:
        lines.append(
            f"missing teachers: {', '.join(plan.missing)}; `python tools/download_teachers.py` "
            "fetches the published ones (all but ResNet101), --train-teachers trains the rest"
        )
    return "\n".join(lines)


def _other_budgets(plan: Plan) -> Iterator[str]:
    """Rows that are trained longer than most, or that see each image twice."""
    rows: dict[tuple[int, int], dict[str, None]] = {}
    for place in plan.places:
        if place.id is not None:
            cfg = plan.jobs[place.id].cfg
            budget = cfg.SOLVER.EPOCHS, 1 + cfg.DATASET.STRONG_VIEW
            rows.setdefault(budget, {})[place.cell.row.key] = None
    for epochs, views in sorted(rows, key=lambda budget: -len(rows[budget]))[1:]:
        names = ", ".join(rows[epochs, views])
        seen = "one view" if views == 1 else "two views"
        yield f"another budget than most rows, {epochs} epochs and {seen} of an image: {names}"


def _to_last(fleet: Sequence[Job]) -> str:
    return f" to {fleet[-1].title}" if len(fleet) > 1 else ""


def _costs(plan: Plan, work: Work, workers: int, estimate: Estimate) -> Iterator[str]:
    """Lines on time and disk."""
    sizes = {job.id: len(fleet) for fleet in work.ready for job in fleet}
    left = {p.id: plan.jobs[p.id] for p in plan.places if p.id and p.id not in plan.done}
    left |= {job.id: job for job in plan.needed_teachers}

    def seconds(job: Job) -> float:
        rest = 1 - job.epochs_done() / job.cfg.SOLVER.EPOCHS
        return rest * estimate.seconds(job.cfg, sizes.get(job.id, 1))

    caches = [use for use in plan.caches.uses.values() if use.pays]
    answers = sum(use.cost * estimate.pass_seconds(use.cfg) for use in caches)
    first = [seconds(job) for job in plan.needed_teachers]
    # Runs that wait for a teacher or for others' numbers are in no process yet.
    processes = [*work.ready, *((job,) for id, job in left.items() if id not in sizes)]
    ids = {job.id for job in plan.needed_teachers}
    then = [sum(map(seconds, fleet)) for fleet in processes if fleet[0].id not in ids]
    total = sum(first) + sum(then) + answers
    # Nobody begins before the teachers are there; processes share the making of a file.
    longest = makespan(first, workers) + answers / workers + makespan(then, workers)
    disk = sum(estimate.disk(job.cfg) for job in left.values())
    yield (
        f"left: {len(left)} runs, {duration(total)} of training, about {duration(longest)} with "
        f"{workers} at a time; {size(disk)} of checkpoints"
    )
    if left:
        yield f"estimated from {estimate.source}"
    yield from (use.words for use in plan.caches.uses.values())
    if unknown := sum(p.id is None for p in plan.places):
        yield f"{unknown} more are not counted: they wait for the runs that they are made of"


def headline(plan: Plan) -> str:
    counts = plan.counts()
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    teachers = f" and {len(plan.needed_teachers)} teachers" if plan.needed_teachers else ""
    return (
        f"{plan.table.title}; {plan.table.dataset}: {len(plan.places)} runs of "
        f"{len(plan.table.cells)} cells{teachers} ({parts}); records in {plan.request.records}"
    )


def _in_words(fleets: Sequence[Sequence[Job]]) -> str:
    """E.g. "processes: 4 x 10 runs, 1 x 1 run"."""
    counts = Counter(map(len, fleets))
    parts = (f"{counts[n]} x {n} run{'s' if n > 1 else ''}" for n in sorted(counts, reverse=True))
    return f"processes: {', '.join(parts)}"


def _state_in_words(state: str, job: Job) -> str:
    if state in ("waiting", "running") and (epochs := job.epochs_done()):
        return f"{state}, {epochs} of {job.cfg.SOLVER.EPOCHS} epochs done"
    return f"failed: {job.last_words()}" if state == "failed" else state


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, by which schedulers end a job, stops the trainings as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command continues where the runs are", flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _closing(backend: Backend):
    return closing(backend) if hasattr(backend, "close") else nullcontext(backend)


def _conclude(plan: Plan, outcome: Outcome) -> None:
    """Say what is missing; raise if something failed."""
    counts = plan.counts()
    print(
        f"{counts['done']} of {len(plan.places)} runs are done; records in {plan.request.records}"
    )
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} are being trained by another process")
    failed = [job for job in (*plan.needed_teachers, *plan.jobs.values()) if job.state == "failed"]
    for job in failed:
        print(f"{job.title} failed: {job.last_words()} (log: {job.log})")
    if failed:
        waiting = f", for which {counts['waiting']} wait" if counts["waiting"] else ""
        raise MdistillerError(
            f"{len(failed)} runs failed{waiting}; see above, and train them again with "
            "--retry-failed"
        )
    if outcome.stopped:
        raise MdistillerError(
            f"{len(outcome.stopped)} runs were stopped by a signal; the same command continues them"
        )
