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
from .fleet.grouping import plan_fleets
from .job import STATES, Job
from .ledger import Ledger
from .plan import Plan, Request, make_plan
from .plan_file import save_plan
from .schedule import Backend, Outcome, Schedule


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
        fleet_size: runs that one process trains side by side, see :func:`~.fleets.plan_fleets`.

    Raises:
        MdistillerError: something failed or is not there; what could be trained is trained.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything can be continued.
    """
    plan = make_plan(request)
    plan.refuse_missing_teachers()
    ledger = Ledger(plan)
    adopted = ledger.adopt(plan)
    dependents = Dependents(plan, ledger)
    plan = dependents.plan
    # Once more, for derived runs are in the plan only where their sources are known.
    if adopted := adopted + ledger.adopt(plan):
        print(f"{adopted} runs are those of other tables in {request.record}")
    ledger.catch_up(plan)
    states = ledger.states(plan)
    dependents.make_ready([run for run in plan.runs if states[run.job] != "done"])
    if retry_failed:
        for job in plan.jobs:
            job.forget_failure()
        states = {job: "waiting" if s == "failed" else s for job, s in states.items()}
    pending = [job for job in plan.jobs if states[job] in ("waiting", "running")]
    fleets, split = plan_fleets(plan, pending, fleet_size)
    for remark in (*save_plan(plan), *split):
        print(f"note: {remark}")
    print(_headline(plan, states, len(dependents.waiting)), flush=True)
    if fleet_size != 1 and fleets:
        print(_in_words(fleets), flush=True)
    outcome = Outcome()
    if pending:
        # In this order, for Ray brings a handler of SIGTERM of its own.
        with _closing(open_backend()) as backend, _interruptible():
            board = Board(plan.jobs, pending)
            follower = Follower(dependents, ledger, board, fleet_size)
            schedule = Schedule(
                pending,
                backend,
                fleets=fleets,
                needs=plan.needs,
                observe=follower.observe,
                tick=board.tick,
            )
            follower.schedule = schedule
            outcome = schedule.run()
    outcome.failed.extend(job for job in plan.jobs if states[job] == "failed")
    _conclude(dependents, ledger, outcome)
    return outcome


def describe(request: Request, workers: int, threads: int, fleet_size: int = 1) -> str:
    """The plan with the state of every cell, the estimated time and the disk space.

    Args:
        workers: processes at a time.
        threads: of one process.
        fleet_size: as for :func:`reproduce`.
    """
    plan = make_plan(request)
    ledger = Ledger(plan)
    dependents = Dependents(plan, ledger)
    plan = dependents.plan
    states = ledger.states(plan)
    pending = [job for job in plan.jobs if states[job] != "done"]
    fleets, split = plan_fleets(plan, pending, fleet_size)
    lines = [_headline(plan, states, len(dependents.waiting)), ""]
    lines += _state_table(plan, states)
    if fleet_size != 1:
        lines += ["", *_fleet_table(fleets), *(f"note: {remark}" for remark in split)]
    model = TimeModel(plan.jobs, threads, fleets)
    seconds = {job: model.seconds(job) for job in plan.jobs}
    left = {job: seconds[job] * _rest(job) for job in pending}
    disk = sum(disk_of(job.cfg) for job in plan.jobs)
    lines += [
        "",
        f"all runs: {duration(sum(seconds.values()))} of training, {size(disk)} of checkpoints",
        f"left: {duration(sum(left.values()))} of training, "
        f"about {duration(_makespan(plan, fleets, left, workers))} with {workers} at a time",
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


def _in_words(fleets: list[tuple[Job, ...]]) -> str:
    """E.g. "processes: 4 x 10 runs, 1 x 1 run"."""
    counts = Counter(map(len, fleets))
    parts = (f"{counts[n]} x {n} run{'s' if n > 1 else ''}" for n in sorted(counts, reverse=True))
    return f"processes: {', '.join(parts)}"


def _fleet_table(fleets: list[tuple[Job, ...]]) -> Iterator[str]:
    yield f"{_in_words(fleets)}; those of a process share its batches and its teacher:"
    for fleet in fleets:
        first, last = fleet[0].folder.name, fleet[-1].folder.name
        yield f"{len(fleet):>4}  {first}" + (f" to {last}" if len(fleet) > 1 else "")


def _state_of(job: Job, state: str) -> str:
    if state in ("waiting", "running") and job.is_resumable():
        return f"{state}, {job.epochs_done()} of {job.cfg.SOLVER.EPOCHS} epochs done"
    return state


def _rest(job: Job) -> float:
    """The share of a run that is still to be trained."""
    if not job.is_resumable():
        return 1.0
    return max(0.0, 1 - job.epochs_done() / job.cfg.SOLVER.EPOCHS)


def _makespan(
    plan: Plan, fleets: list[tuple[Job, ...]], left: dict[Job, float], workers: int
) -> float:
    """Seconds until the last run has ended if each starts when one of ``workers`` is free.

    Teachers first; a process of students may start as soon as their teacher is done.
    """
    free, ended = [0.0] * workers, {}
    teachers = [(job,) for job in plan.teachers.values() if job in left]
    for jobs in (*teachers, *fleets):
        free.sort()
        start = max(free[0], ended.get(plan.needs.get(jobs[0]), 0.0))
        free[0] = ended[jobs[0]] = start + sum(left[job] for job in jobs)
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
