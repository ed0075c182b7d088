"""A whole table or figure of the paper, from one call."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from mdistiller.errors import MdistillerError

from .board import Board, duration
from .dependents import Dependents, Follower
from .estimate import TimeModel, disk_of
from .job import STATES, Job
from .ledger import Ledger
from .plan import Plan, Request, make_plan
from .plan_file import save_plan
from .schedule import Backend, Outcome, Schedule


def reproduce(
    request: Request, open_backend: Callable[[], Backend], *, retry_failed: bool = False
) -> Outcome:
    """Train every run of a table that is not done, and report as it goes.

    Args:
        request: what to train.
        open_backend: makes the backend, after everything has been checked.
        retry_failed: train those again that have failed in an earlier call.

    Raises:
        MdistillerError: something failed or is not there; what could be trained is trained.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything can be continued.
    """
    plan = make_plan(request)
    plan.refuse_missing_teachers()
    ledger = Ledger(plan)
    if adopted := ledger.adopt(plan):
        print(f"{adopted} runs are those of other tables in {request.record}")
    dependents = Dependents(plan, ledger)
    plan = dependents.plan
    ledger.catch_up(plan)
    states = ledger.states(plan)
    dependents.make_ready([run for run in plan.runs if states[run.job] != "done"])
    if retry_failed:
        for job in plan.jobs:
            job.forget_failure()
        states = {job: "waiting" if s == "failed" else s for job, s in states.items()}
    for remark in save_plan(plan):
        print(f"note: {remark}")
    pending = [job for job in plan.jobs if states[job] in ("waiting", "running")]
    print(_headline(plan, states, len(dependents.waiting)), flush=True)
    outcome = Outcome()
    if pending:
        # In this order, for Ray brings a handler of SIGTERM of its own.
        with _closing(open_backend()) as backend, _interruptible():
            board = Board(plan.jobs, pending)
            follower = Follower(dependents, ledger, board)
            schedule = Schedule(
                pending, backend, needs=plan.needs, observe=follower.observe, tick=board.tick
            )
            follower.schedule = schedule
            outcome = schedule.run()
    outcome.failed.extend(job for job in plan.jobs if states[job] == "failed")
    _conclude(dependents, ledger, outcome)
    return outcome


def describe(request: Request, workers: int, threads: int) -> str:
    """The plan with the state of every cell, the estimated time and the disk space.

    Args:
        workers: runs at a time.
        threads: of one run.
    """
    plan = make_plan(request)
    ledger = Ledger(plan)
    dependents = Dependents(plan, ledger)
    plan = dependents.plan
    states = ledger.states(plan)
    lines = [_headline(plan, states, len(dependents.waiting)), ""]
    lines += _state_table(plan, states)
    model = TimeModel(plan.jobs, threads)
    seconds = {job: model.seconds(job.cfg) for job in plan.jobs}
    left = {job: seconds[job] * _rest(job) for job in plan.jobs if states[job] != "done"}
    disk = sum(disk_of(job.cfg) for job in plan.jobs)
    lines += [
        "",
        f"all runs: {duration(sum(seconds.values()))} of training, {size(disk)} of checkpoints",
        f"left: {duration(sum(left.values()))} of training, "
        f"about {duration(_makespan(plan, left, workers))} with {workers} at a time",
        f"estimated from {model.source}",
        "disk: computed from the sizes of the networks",
    ]
    if plan.missing:
        lines.append(
            f"missing teachers: {', '.join(plan.missing)}; `python tools/download_teachers.py` "
            "fetches the published ones (all but ResNet101), --train-teachers trains the rest"
        )
    return "\n".join(lines)


def _headline(plan: Plan, states: dict[Job, str], deferred: int) -> str:
    counts = Counter(states.values())
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    if deferred:
        parts += f"; {deferred} more wait for the runs that they are made of"
    teachers = f" and {len(plan.teachers)} teachers" if plan.teachers else ""
    return (
        f"{plan.table.title}; {plan.table.dataset}: {len(plan.runs)} runs of "
        f"{len(plan.table.cells)} cells{teachers} in {plan.request.root} ({parts})"
    )


def _state_table(plan: Plan, states: dict[Job, str]) -> Iterator[str]:
    """A line for each teacher and cell; a letter for the state of each trial."""
    width = max(len(run.job.folder.name) for run in plan.runs)
    for job in plan.teachers.values():
        yield f"{job.folder.name:<{width}}  {_state_of(job, states[job])}"
    for run in plan.runs:
        yield f"{run.job.folder.name:<{width}}  {_state_of(run.job, states[run.job])}"


def _state_of(job: Job, state: str) -> str:
    if state in ("waiting", "running") and job.is_resumable():
        return f"{state}, {job.epochs_done()} of {job.cfg.SOLVER.EPOCHS} epochs done"
    return state


def _rest(job: Job) -> float:
    """The share of a run that is still to be trained."""
    if not job.is_resumable():
        return 1.0
    return max(0.0, 1 - job.epochs_done() / job.cfg.SOLVER.EPOCHS)


def _makespan(plan: Plan, left: dict[Job, float], workers: int) -> float:
    """Seconds until the last run has ended if each starts when one of ``workers`` is free.

    Teachers first; a student may start as soon as its own teacher is done.
    """
    free, ended = [0.0] * workers, {}
    for job in (j for j in plan.jobs if j in left):
        free.sort()
        start = max(free[0], ended.get(plan.needs.get(job), 0.0))
        free[0] = ended[job] = start + left[job]
    return max(free)


def size(number: float) -> str:
    """Bytes in words, e.g. "54 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


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


def _conclude(dependents: Dependents, ledger: Ledger, outcome: Outcome) -> None:
    """Say what is missing; raise if something failed."""
    plan = dependents.plan
    done = sum(ledger.result(run.job) is not None for run in plan.runs)
    print(f"{done} of {len(plan.runs)} runs are done; results in {plan.request.root}")
    if dependents.waiting:
        print(f"{len(dependents.waiting)} more wait for the runs that they are made of")
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} are being trained by another process")
    for job in outcome.failed:
        print(job.describe_failure())
    if outcome.failed:
        blocked = f" ({len(outcome.blocked)} more wait for their teacher)"
        raise MdistillerError(
            f"{len(outcome.failed)} runs failed{blocked if outcome.blocked else ''}; "
            "see above, and train them again with --retry-failed"
        )
    if outcome.stopped:
        raise MdistillerError(
            f"{len(outcome.stopped)} runs were stopped by a signal; the same command continues them"
        )
