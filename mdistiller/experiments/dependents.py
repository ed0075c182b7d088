"""Runs whose settings are made of the numbers of other runs, which they wait for."""

from __future__ import annotations

from dataclasses import dataclass

from mdistiller.engine.check import check_config
from mdistiller.errors import ConfigError

from .board import Board
from .fleet.grouping import plan_fleets
from .job import Job
from .ledger import Ledger
from .old_derive import derive
from .plan import Plan, Run, plan_run
from .plan_file import save_plan
from .schedule import Schedule
from .tables import Cell


@dataclass(frozen=True)
class Dependent:
    """A trial of a cell whose row is derived, and the run that it is derived from."""

    cell: Cell
    trial: int
    source: Run


class Dependents:
    """The plan's derived runs.

    Args:
        plan: without them.
        ledger: of the plan.

    Attributes:
        plan: with those that could be settled so far.
        waiting: the others.

    Raises:
        ConfigError: a row's source is not in the plan.
    """

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan = plan
        self._ledger = ledger
        sources = {(r.cell.row.key, r.cell.column.key, r.trial): r for r in plan.runs}
        cells = [cell for cell in plan.table.cells if cell.row.derived is not None]
        self.waiting: list[Dependent] = []
        for cell in cells:
            for trial in plan.trials:
                place = (cell.row.derived.source, cell.column.key, trial)
                if place not in sources:
                    raise ConfigError(
                        f"row {cell.row.key} is made of the runs of row {place[0]}; add {place[0]} "
                        "to --methods"
                    )
                self.waiting.append(Dependent(cell, trial, sources[place]))
        self.settle()

    def settle(self) -> list[Run]:
        """The runs whose source is done by now; they are added to the plan."""
        settled, left = [], []
        for dependent in self.waiting:
            source = self._ledger.source(dependent.source.job)
            if source is None:
                left.append(dependent)
                continue
            plain = plan_run(self.plan, dependent.cell, dependent.trial)
            opts = derive(dependent.cell.row.derived.how, source, plain.job.cfg)
            settled.append(plan_run(self.plan, dependent.cell, dependent.trial, opts))
        self.waiting = left
        self.plan = self.plan.with_runs(settled)
        self._ledger.enlist(settled, self.plan)
        return settled

    def make_ready(self, runs: list[Run]) -> None:
        """Put in place what these runs read, and check them.

        Raises:
            ConfigError, DataError: a run cannot be trained.
        """
        sources = {
            (r.cell.row.key, r.cell.column.key, r.trial): r.job
            for r in self.plan.runs
            if r.cell.row.derived is None
        }
        for run in runs:
            derived = run.cell.row.derived
            if derived is not None:
                if run.job.cfg.SOLVER.TRAINER == "replay":
                    place = (derived.source, run.cell.column.key, run.trial)
                    self._ledger.restore_weights(sources[place])
                check_config(run.job.cfg)


class Follower:
    """Watches a schedule: records what ends, and adds what had to wait for it.

    Args:
        dependents, ledger: of the schedule's plan.
        board: told of everything, too.
        fleet_size: runs that one process trains side by side, see :func:`~.fleets.plan_fleets`.
    """

    def __init__(
        self, dependents: Dependents, ledger: Ledger, board: Board, fleet_size: int = 1
    ) -> None:
        self._dependents, self._ledger, self._board = dependents, ledger, board
        self._fleet_size = fleet_size
        self.schedule: Schedule | None = None

    def observe(self, event: str, job: Job) -> None:
        """Of :class:`~.schedule.Schedule`."""
        self._ledger.observe(event, job)
        self._board.observe(event, job)
        if event != "done" or not any(d.source.job == job for d in self._dependents.waiting):
            return
        runs = self._dependents.settle()
        self._dependents.make_ready(runs)
        plan = self._dependents.plan
        save_plan(plan)
        states = self._ledger.states(plan)
        pending = [run.job for run in runs if states[run.job] in ("waiting", "running")]
        for fleet in plan_fleets(plan, pending, self._fleet_size)[0]:
            for waiting in fleet:
                self._board.add(waiting)
            self.schedule.add(fleet, plan.needs.get(fleet[0]))
