"""The loop that sees jobs through; nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdistiller.engine.lock import claim, is_locked
from mdistiller.experiments import make_plan
from mdistiller.experiments.job import Job
from mdistiller.experiments.schedule import Schedule

from .test_plan import finish, request


class Instantly:
    """A backend on which every job ends at once, with the exit status in ``codes``."""

    size = 2

    def __init__(self, codes=None, log="") -> None:
        self.codes, self.log = codes or {}, log
        self.started: list[Job] = []
        self._ended: list[Job] = []
        self.stopped = False

    def has_room(self) -> bool:
        return len(self._ended) < self.size

    def start(self, job: Job) -> None:
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
