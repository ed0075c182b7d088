"""The loop that sees jobs through; nothing is trained here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mdistiller.engine.rundir.folder import claim, is_locked
from mdistiller.errors import ConfigError
from mdistiller.experiments import ALL, describe, make_plan
from mdistiller.experiments.estimate import TimeModel
from mdistiller.experiments.fleet.grouping import plan_fleets
from mdistiller.experiments.job import Job, command
from mdistiller.experiments.schedule import Schedule

from .test_plan import finish, request


class Instantly:
    """A backend on which every job ends at once, with the exit status in ``codes``.

    ``processes`` are the jobs that were started together.
    """

    size = 2

    def __init__(self, codes=None, log="") -> None:
        self.codes, self.log = codes or {}, log
        self.started: list[Job] = []
        self.processes: list[tuple[Job, ...]] = []
        self._ended: list[Job] = []
        self.stopped = False

    def has_room(self) -> bool:
        return len(self._ended) < self.size

    def start(self, jobs: tuple[Job, ...]) -> None:
        self.processes.append(jobs)
        for job in jobs:
            self.started.append(job)
            self._ended.append(job)
            with job.open_log() as log:
                log.write(self.log)
            if not self.codes.get(job, 0):
                finish(job)

    def finished(self) -> list[tuple[Job, int]]:
        ended, self._ended = self._ended, []
        return [(job, self.codes.get(job, 0)) for job in ended]

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def plan(tmp_path: Path):
    return make_plan(request(tmp_path, trials=2))


def test_schedule_trains_teachers_first_and_everything_once(plan) -> None:
    backend = Instantly()
    outcome = Schedule(plan.jobs[::-1], backend, needs=plan.needs).run()
    assert backend.started[0] in plan.teachers.values()
    assert sorted(j.folder for j in backend.started) == sorted(j.folder for j in plan.jobs)
    assert len(outcome.done) == 5
    assert not any(job.claim_file.exists() and is_locked(job.claim_file) for job in plan.jobs)


def test_schedule_goes_on_after_a_failure(plan) -> None:
    bad = plan.runs[1].job
    backend = Instantly({bad: 1}, log="error: of this kind\n")
    outcome = Schedule(plan.jobs, backend, needs=plan.needs).run()
    assert outcome.failed == [bad]
    assert len(outcome.done) == 4
    failure = json.loads(bad.failure_file.read_text())
    assert (failure["exit_code"], failure["tail"]) == (1, ["error: of this kind"])
    assert "error: of this kind" in bad.describe_failure()


def test_schedule_blocks_the_students_of_a_failed_teacher(plan) -> None:
    (teacher,) = plan.teachers.values()
    backend = Instantly({teacher: 1})
    outcome = Schedule(plan.jobs, backend, needs=plan.needs).run()
    assert backend.started == [teacher]
    assert (outcome.failed, len(outcome.blocked)) == ([teacher], 4)


@pytest.mark.parametrize("code", [130, 143, -15])
def test_schedule_does_not_call_an_interruption_a_failure(plan, code: int) -> None:
    job = plan.runs[0].job
    outcome = Schedule([job], Instantly({job: code})).run()
    assert outcome.stopped == [job]
    assert job.state() == "waiting"


def test_schedule_leaves_what_another_process_trains(plan) -> None:
    first, second, third = (run.job for run in plan.runs[:3])
    backend = Instantly({third: 1}, log="error: another process is training in x; wait for it\n")
    with claim(first.claim_file), claim(second.folder / ".lock"):
        outcome = Schedule([first, second, third], backend).run()
    # The third was locked after it had been looked at.
    assert backend.started == [third]
    assert outcome.elsewhere == [first, second, third]
    assert third.state() == "waiting"


def test_schedule_waits_for_a_teacher_that_another_process_trains(plan, monkeypatch) -> None:
    monkeypatch.setattr("mdistiller.experiments.schedule._LOOK_ELSEWHERE_SECONDS", 0.0)
    (teacher,) = plan.teachers.values()
    lock = claim(teacher.claim_file)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            finish(teacher)
            lock.close()

    backend = Instantly()
    outcome = Schedule(plan.jobs, backend, needs=plan.needs, tick=tick).run()
    assert teacher not in backend.started
    assert len(outcome.done) == 5


def test_schedule_takes_over_a_teacher_that_another_process_left(plan, monkeypatch) -> None:
    monkeypatch.setattr("mdistiller.experiments.schedule._LOOK_ELSEWHERE_SECONDS", 0.0)
    (teacher,) = plan.teachers.values()
    lock = claim(teacher.claim_file)
    backend = Instantly()
    outcome = Schedule(plan.jobs, backend, needs=plan.needs, tick=lock.close).run()
    assert backend.started[0] == teacher
    assert len(outcome.done) == 5


def test_schedule_stops_everything_on_ctrl_c(plan) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    backend = Instantly()
    with pytest.raises(KeyboardInterrupt):
        Schedule(plan.jobs, backend, needs=plan.needs, tick=interrupt).run()
    assert backend.stopped


# ---- fleets ----------------------------------------------------------------------------------


def test_fleets_start_together_after_their_teacher(plan) -> None:
    (teacher,) = plan.teachers.values()
    fleets, remarks = plan_fleets(plan, plan.jobs)
    assert [[run.job for run in group] for group in plan.groups().values()] == [*map(list, fleets)]
    assert remarks == []
    backend = Instantly()
    outcome = Schedule(plan.jobs, backend, fleets=fleets, needs=plan.needs).run()
    assert backend.processes == [(teacher,), *fleets]
    assert len(outcome.done) == 5


def test_fleets_leave_out_what_is_done_or_trained_elsewhere(tmp_path) -> None:
    plan = make_plan(request(tmp_path, methods=("KD", "AT")))
    jobs = [run.job for run in plan.runs]
    (fleet,), _ = plan_fleets(plan, jobs)
    assert fleet == tuple(jobs)
    finish(jobs[1])
    backend = Instantly()
    with claim(jobs[2].claim_file):
        outcome = Schedule(jobs, backend, fleets=[fleet]).run()
    assert backend.processes == [(jobs[0], jobs[3])]
    assert outcome.done == [jobs[1], jobs[0], jobs[3]]
    assert outcome.elsewhere == [jobs[2]]


def test_a_member_of_a_fleet_fails_by_itself(plan) -> None:
    """One has failed, then a signal stopped the other: the process's status is the signal's."""
    one, other = (run.job for run in plan.runs[:2])

    class Marks(Instantly):
        def start(self, jobs) -> None:
            super().start(jobs)
            one.mark_failed(1)

    backend = Marks({one: 143, other: 143})
    outcome = Schedule([one, other], backend, fleets=[(one, other)]).run()
    assert (outcome.failed, outcome.stopped) == ([one], [other])
    assert (one.state(), other.state()) == ("failed", "waiting")
    assert json.loads(one.failure_file.read_text())["exit_code"] == 1


def test_fleets_of_a_size_are_even_and_kinds_stay_apart(tmp_path) -> None:
    plan = make_plan(request(tmp_path, methods=()))
    jobs = [run.job for run in plan.runs]
    sizes = {size: [len(f) for f in plan_fleets(plan, jobs, size)[0]] for size in (1, 3, 4, 10, 99)}
    assert sizes == {1: [1] * 10, 3: [2, 3, 2, 3], 4: [3, 3, 4], 10: [10], 99: [10]}
    # A method whose configuration asks for another batch size.
    changed = Job(jobs[3].cfg_file, (*jobs[3].opts, "SOLVER.BATCH_SIZE", "32"))
    runs = tuple(replace(r, job=changed) if r.job == jobs[3] else r for r in plan.runs)
    fleets, remarks = plan_fleets(replace(plan, runs=runs), [*jobs, changed])
    assert sorted(map(len, fleets)) == [1, 9]
    assert remarks == ["res20_res8, trial 0: 2 kinds of runs, by SOLVER.BATCH_SIZE"]


def test_the_command_of_a_fleet_holds_its_jobs(plan) -> None:
    jobs = [run.job for run in plan.runs[:2]]
    *_, module, parent, one, other = command(jobs)
    assert (module, parent) == ("mdistiller.experiments.fleet.process", "PARENT")
    assert [Job(f, tuple(opts)) for f, *opts in map(json.loads, (one, other))] == jobs
    assert command(jobs[:1])[1] == "mdistiller.experiments.tether"


def test_the_plan_says_what_shares_a_teacher_and_what_that_saves(plan, tmp_path) -> None:
    alone = describe(plan.request, workers=1, threads=1)
    assert "processes:" not in alone
    text = describe(plan.request, workers=1, threads=1, fleet_size=ALL)
    assert "processes: 2 x 2 runs; those of" in text
    first, last = plan.runs[0].job.folder.name, plan.runs[1].job.folder.name
    assert f"   2  {first} to {last}\n" in text
    # Times of runs that did not share say nothing about runs that do, and the other way round.
    for run in plan.runs:
        finish(run.job, seconds=3600.0, fleet=2)
    (teacher,) = plan.teachers.values()
    finish(teacher, seconds=7.0, epochs=1)
    model = TimeModel(plan.jobs, 1, [tuple(run.job for run in plan.runs[:2])])
    epochs = plan.runs[0].job.cfg.SOLVER.EPOCHS
    assert model.seconds(plan.runs[0].job) == 3600 * epochs
    assert model.seconds(plan.runs[2].job) < 3600
    assert model.seconds(teacher) == 7 * teacher.cfg.SOLVER.EPOCHS


def test_one_process_cannot_report_two_runs_to_wandb(tmp_path) -> None:
    plan = make_plan(request(tmp_path, "LOG.WANDB", "True"))
    assert len(plan_fleets(plan, plan.jobs, 1)[0]) == 2
    with pytest.raises(ConfigError, match="LOG.WANDB True"):
        plan_fleets(plan, plan.jobs)
