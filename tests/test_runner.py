"""The loop that sees jobs through, and tables with rows made of other rows; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mdistiller.engine.cfg import CFG
from mdistiller.engine.rundir.folder import claim, is_locked
from mdistiller.engine.trainers.replay import read_weights
from mdistiller.errors import ConfigError, DataError, MdistillerError
from mdistiller.experiments import ALL, Plan, describe, read_runs, runner
from mdistiller.experiments.backends import command
from mdistiller.experiments.derive import derive
from mdistiller.experiments.estimate import Estimate
from mdistiller.experiments.fleet.grouping import plan_fleets
from mdistiller.experiments.runner import Runner
from mdistiller.experiments.schema import Record

from .study_runs import STEPS, Instantly, complete, grid, row_of, train
from .test_plan import request

KEPT = ("vanilla", "align", "scaled_lr", "mean_weights", "shuffled")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_LOOK_ELSEWHERE_SECONDS", 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(request(tmp_path, trials=2))


def run(plan: Plan, backend: Instantly, fleet_size: int = 1, **options):
    observe = lambda event, job: event in ("done", "failed") and plan.settle(event, job)  # noqa: E731
    return Runner(lambda: plan.work(fleet_size)[0], backend, observe=observe, **options).run()


# ---- the loop --------------------------------------------------------------------------------


def test_teachers_come_first_and_everything_once(plan):
    backend = Instantly()
    outcome = run(plan, backend)
    assert backend.rows == ["teacher", "kd", "kd_crossbatch", "kd", "kd_crossbatch"]
    assert len(outcome.done) == 5 and not outcome.failed
    jobs = [*plan.teachers.values(), *plan.jobs.values()]
    assert not any(is_locked(job.claim_file) for job in jobs)
    assert [r.state for r in read_runs(plan.request.records)] == ["done"] * 5
    again = Instantly()
    run(Plan(plan.request), again)
    assert not again.started


def test_it_goes_on_after_a_failure(plan):
    outcome = run(plan, Instantly({"kd": 1}))
    assert [row_of(job) for job in outcome.failed] == ["kd", "kd"]
    assert len(outcome.done) == 3
    failure = outcome.failed[0].failure()
    assert (failure["exit_code"], failure["tail"]) == (1, ["error: its last words"])
    failed = [r for r in read_runs(plan.request.records) if r.state == "failed"]
    assert [r.failure["tail"] for r in failed] == [["error: its last words"]] * 2


@pytest.mark.parametrize("times", [1, runner.RETRIES, runner.RETRIES + 1])
def test_a_run_whose_process_was_killed_is_tried_again_but_not_for_ever(plan, times):
    (teacher,) = plan.teachers.values()
    complete(teacher)
    victim, *others = plan.jobs.values()

    class Killing(Instantly):
        def start(self, jobs) -> None:
            self.codes = {"kd": -9} if jobs[0] == victim and self.count < times else {}
            self.count += jobs[0] == victim
            super().start(jobs)

        count = 0

    backend = Killing()
    outcome = run(plan, backend)
    fails = times > runner.RETRIES
    assert backend.started.count(victim) == min(times, runner.RETRIES) + 1
    assert (outcome.failed == [victim]) == fails and (victim in outcome.done) != fails
    assert set(others) <= set(outcome.done) and len(outcome.done) == 4 - fails
    assert not is_locked(victim.claim_file)
    assert (victim.failure()["exit_code"] == -9) == fails


def test_it_stops_at_a_failure_if_asked(plan):
    (teacher,) = plan.teachers.values()
    complete(teacher)
    backend = Instantly({"kd": 1})
    backend.size = 1
    outcome = run(plan, backend, stop_at_failure=True)
    assert backend.rows == ["kd"] and len(outcome.failed) == 1


def test_students_of_a_failed_teacher_are_not_started(plan):
    backend = Instantly({"teacher": 1})
    outcome = run(plan, backend)
    assert backend.rows == ["teacher"] and len(outcome.failed) == 1


def test_an_interruption_is_no_failure(plan):
    (teacher,) = plan.teachers.values()
    complete(teacher)
    for code in (130, 143, -15):
        outcome = run(plan, Instantly({"kd": code}))
        assert {row_of(job) for job in outcome.stopped} == {"kd"}
        assert {job.state for job in outcome.stopped} == {"waiting"}


def test_what_another_process_trains_is_left_to_it(plan):
    (teacher,) = plan.teachers.values()
    complete(teacher)
    first, second, third, _ = plan.jobs.values()
    locks = []

    class LockedMeanwhile(Instantly):
        """Someone starts a training by hand after this one was looked at."""

        def start(self, jobs) -> None:
            super().start(jobs)
            if jobs == (third,):
                shutil.rmtree(third.folder)
                locks.append(claim(third.folder / ".lock"))
                self._ended[-1] = (third, 1)

    backend = LockedMeanwhile()
    with claim(first.claim_file), claim(second.folder / ".lock"):
        outcome = run(plan, backend)
    assert outcome.elsewhere == [first, second, third]
    assert len(outcome.done) == 1 and not outcome.failed
    locks[0].close()
    assert third.state == "waiting"


@pytest.mark.parametrize("ends", [True, False])
def test_it_waits_for_a_teacher_that_another_process_trains(plan, ends):
    """Until it is done, or until that process has left it."""
    (teacher,) = plan.teachers.values()
    lock, ticks = claim(teacher.claim_file), []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            if ends:
                complete(teacher)
            lock.close()

    backend = Instantly()
    outcome = run(plan, backend, tick=tick)
    assert (teacher not in backend.started) == ends
    assert len(outcome.done) == 5


def test_ctrl_c_stops_everything(plan):
    def interrupt() -> None:
        raise KeyboardInterrupt

    backend = Instantly()
    with pytest.raises(KeyboardInterrupt):
        run(plan, backend, tick=interrupt)
    assert backend.stopped


# ---- several in one process ------------------------------------------------------------------


def test_fleets_start_together_and_leave_out_what_is_not_theirs(plan):
    jobs = list(plan.jobs.values())
    complete(jobs[1])
    backend = Instantly()
    with claim(jobs[2].claim_file):
        outcome = run(plan, backend, fleet_size=ALL)
    (teacher,) = plan.teachers.values()
    assert backend.processes == [(teacher,), (jobs[0],), (jobs[3],)]
    assert outcome.elsewhere == [jobs[2]]
    (*_, module, parent, one, other) = command(jobs[:2])
    assert (module, parent) == ("mdistiller.experiments.worker", "PARENT")
    assert [json.loads(words)[0] for words in (one, other)] == [jobs[0].id, jobs[1].id]


def test_a_member_of_a_fleet_fails_by_itself(plan):
    """One has failed, then a signal stopped the others: the process's status is the signal's."""
    (teacher,) = plan.teachers.values()
    complete(teacher)

    class Marks(Instantly):
        def start(self, jobs) -> None:
            super().start(jobs)
            jobs[0].mark_failed(1)

    outcome = run(plan, Marks({"kd": 143, "kd_crossbatch": 143}), fleet_size=ALL)
    assert [row_of(job) for job in outcome.failed] == ["kd", "kd"]
    assert [row_of(job) for job in outcome.stopped] == ["kd_crossbatch", "kd_crossbatch"]


def test_fleets_are_even_and_kinds_stay_apart(tmp_path):
    jobs = list(Plan(request(tmp_path, methods=())).jobs.values())
    sizes = {size: [len(f) for f in plan_fleets([jobs], size)[0]] for size in (1, 3, 4, 10, 99)}
    assert sizes == {1: [1] * 10, 3: [2, 3, 2, 3], 4: [3, 3, 4], 10: [10], 99: [10]}
    other = Plan(request(tmp_path, "SOLVER.BATCH_SIZE", "32")).jobs.values()
    fleets, (remark,) = plan_fleets([[*jobs, *other]])
    assert [len(fleet) for fleet in fleets] == [10, 2]
    assert "2 processes, by SOLVER.BATCH_SIZE" in remark
    wandb = list(Plan(request(tmp_path, "LOG.WANDB", "True")).jobs.values())
    assert len(plan_fleets([wandb], 1)[0]) == 2
    with pytest.raises(ConfigError, match="LOG.WANDB True"):
        plan_fleets([wandb])


# ---- rows that are made of other rows --------------------------------------------------------


def recorded(prefix: Path, state: str = "done") -> list[Record]:
    return [r for r in read_runs(prefix / "results") if r.state == state]


def by_place(request) -> dict[tuple[str, int], Record]:
    plan = Plan(request)
    return {(p.cell.row.key, p.trial): plan.done[p.id] for p in plan.places}


def test_derived_settings_by_hand():
    first = {"ce": 0.6, "kd": 0.4, "norm_sum": 2.0, "norm_update": 1.0}
    second = {"ce": 0.8, "kd": 0.2, "norm_sum": 4.0, "norm_update": 4.0}
    epochs = [
        {"epoch": 1, "lr": 0.1, "steps": 3, "crossbatch": first},
        {"epoch": 2, "lr": 0.01, "steps": 3, "crossbatch": second},
    ]
    source = Record("0123abcd", "done", {}, epochs=epochs, weights=[{"epoch": 1}])
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "KD", "SOLVER.LR", 0.1])
    # Steps of 0.1 * 1 and 0.01 * 4, against plain ones of 0.1 * 2 and 0.01 * 4.
    ratio = (0.1 * 1 + 0.01 * 4) / (0.1 * 2 + 0.01 * 4)
    key, value = derive("scaled_lr", source, cfg)
    assert (key, float(value)) == ("SOLVER.LR", pytest.approx(0.1 * ratio, rel=1e-5))
    assert derive("mean_weights", source, cfg) == (
        *("KD.LOSS.CE_WEIGHT", "0.07", "KD.LOSS.KD_WEIGHT", "0.27"),
    )
    opts = derive("shuffled", source, cfg)
    assert dict(zip(opts[0::2], opts[1::2], strict=True)) == {
        "SOLVER.TRAINER": "replay",
        "REPLAY.SHUFFLE": "True",
        "REPLAY.FILE": "0123abcd/weights.jsonl",
    }
    first["norm_update"] = None
    with pytest.raises(DataError, match=r"0123abcd has no crossbatch\.norm_update"):
        derive("scaled_lr", source, cfg)


def test_controls_start_as_soon_as_their_source_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(Estimate, "_time", lambda self, cfg, name: 1e-6)
    request = grid(tmp_path, trials=2, methods=KEPT)
    text = describe(request, 1, 1)
    assert "10 runs of 5 cells and 1 teachers (10 waiting)" in text
    assert "waits for align-res20_res8-t1-" in text
    assert "6 more are not counted" in text
    backend = train(request)
    assert sorted(backend.rows) == sorted(["teacher", *2 * KEPT])
    # Two at a time: the first trial's controls come before the second trial.
    assert set(backend.rows[3:6]) == {"scaled_lr", "mean_weights", "shuffled"}
    found = by_place(request)
    for trial in (0, 1):
        align = found["align", trial]
        ce = sum(entry["crossbatch"]["ce"] for entry in align.epochs) / 2
        loss = found["mean_weights", trial].config
        assert loss["KD.LOSS.CE_WEIGHT"] == pytest.approx(0.1 * ce, rel=1e-5)
        assert found["scaled_lr", trial].config["SOLVER.LR"] != 0.05
        assert found["shuffled", trial].config["REPLAY.FILE"] == f"{align.id}/weights.jsonl"
        assert len({found[row, trial].seed for row in KEPT}) == 1
    assert len({record.id for record in found.values()}) == 10
    assert train(request).started == []


def test_controls_of_one_source_share_a_process(tmp_path):
    backend = train(grid(tmp_path, trials=2, methods=KEPT), fleet_size=ALL)
    # The teacher; baseline and source of both trials; then what is made of each source.
    assert sorted(map(len, backend.processes)) == [1, 2, 2, 3, 3]


def test_every_method_has_controls_made_of_its_own_run(tmp_path):
    request = grid(tmp_path, "grid_e", methods=("RKD",))
    train(request)
    found = {row: record.config for (row, _), record in by_place(request).items()}
    ours = by_place(request)["rkd_crossbatch", 0]
    means = {k: sum(e["crossbatch"][k] for e in ours.epochs) / 2 for k in ("ce", "kd")}
    loss = found["rkd_mean_weights"]
    assert loss["RKD.LOSS.CE_WEIGHT"] == pytest.approx(means["ce"], rel=1e-5)
    assert loss["RKD.LOSS.FEAT_WEIGHT"] == pytest.approx(means["kd"], rel=1e-5)
    assert found["rkd_scaled_lr"]["SOLVER.LR"] != found["rkd"]["SOLVER.LR"]
    assert found["rkd_same"]["CROSSBATCH.REFERENCE"] == "same"


def test_longer_training_has_twice_the_epochs_and_the_same_schedule(tmp_path):
    opts = ("SOLVER.LR_DECAY_STAGES", "[5]", "SOLVER.EPOCHS", "6")
    request = grid(tmp_path, "grid_d", methods=("vanilla", "longer"), epochs=None, opts=opts)
    train(request)
    vanilla, longer = (by_place(request)[row, 0].config for row in ("vanilla", "longer"))
    assert longer["SOLVER.EPOCHS"] == 12 and longer["SOLVER.LR_DECAY_STAGES"] == [10]
    differing = {key for key in vanilla if vanilla[key] != longer[key]}
    assert differing == {"SOLVER.EPOCHS", "SOLVER.LR_DECAY_STAGES"}


def test_a_control_needs_its_source_in_the_plan(tmp_path):
    with pytest.raises(ConfigError, match="row shuffled is made of the runs of row align; add"):
        train(grid(tmp_path, methods=("vanilla", "shuffled")))


def test_controls_of_a_failed_source_wait(tmp_path, capsys):
    request = grid(tmp_path, methods=KEPT)
    with pytest.raises(MdistillerError, match="1 runs failed, for which 3 wait"):
        train(request, codes={"align": 1})
    out = capsys.readouterr().out
    assert "FAILED: error: its last words" in out and "failed: error: its last words (log:" in out
    with pytest.raises(MdistillerError):
        train(request)
    assert len(recorded(tmp_path, "failed")) == 1
    again = train(request, retry_failed=True)
    assert sorted(again.rows) == ["align", "mean_weights", "scaled_lr", "shuffled"]
    # The failure stays on record.
    assert len(recorded(tmp_path, "failed")) == 1
    assert {row for row, _ in by_place(request)} == set(KEPT)


# ---- records continue a study ----------------------------------------------------------------


def test_what_is_recorded_is_done_where_the_folders_are_gone(tmp_path, capsys):
    request = grid(tmp_path, methods=KEPT)
    train(request)
    before = recorded(tmp_path)
    assert len(before) == 6
    shutil.rmtree(tmp_path / "output")
    assert train(request).started == []
    assert "5 of 5 runs are done" in capsys.readouterr().out
    # What is to do needs its teacher again, and the other runs nothing.
    more = train(grid(tmp_path, methods=(*KEPT, "printed")))
    assert more.rows == ["teacher", "printed"]
    assert recorded(tmp_path)[:6] == before
    # Recorded elsewhere, it is trained.
    other = grid(tmp_path, methods=KEPT, record=str(tmp_path / "other"))
    assert len(train(other).started) == 5


def test_a_control_is_made_of_a_recorded_source(tmp_path):
    request = grid(tmp_path, methods=KEPT)
    train(request)
    (given,) = (tmp_path / "output").rglob("kd-*/weights.jsonl")
    weights, before = read_weights(given).float(), by_place(request)
    path = tmp_path / "results" / "runs.jsonl"
    kept = [before[row, 0].id for row in ("vanilla", "align")]
    lines = [x for x in path.read_text().splitlines() if json.loads(x)["id"] in kept]
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(tmp_path / "output")
    backend = train(request)
    assert sorted(backend.rows) == ["mean_weights", "scaled_lr", "shuffled", "teacher"]
    after = by_place(request)
    assert {key: r.config for key, r in after.items()} == {k: r.config for k, r in before.items()}
    (replay,) = [j for j in backend.started if j.cfg.SOLVER.TRAINER == "replay"]
    # In single precision, as the replay uses them.
    restored = read_weights(replay.cfg.REPLAY.FILE)
    assert restored.float().equal(weights)
    assert len(restored) == 2 * STEPS


def test_a_run_that_tables_share_is_trained_once(tmp_path):
    # Also by two calls at once: both have its one folder, which one of them claims.
    one, other = (grid(tmp_path, *args) for args in (("grid_a",), ("grid_b",)))
    folders = [{job.folder for job in Plan(r, write=False).jobs.values()} for r in (one, other)]
    assert len(folders[0] & folders[1]) == 2
    train(grid(tmp_path, "grid_a", methods=("KD",)))
    assert sorted(train(grid(tmp_path, methods=KEPT)).rows) == sorted(KEPT[2:])
    assert train(grid(tmp_path, "grid_c", methods=("original", "ours"))).rows == []
    assert sorted(train(grid(tmp_path, "grid_e", methods=("KD",))).rows) == ["kd_same"]
    assert {r.table for r in recorded(tmp_path)} == {"grid_a", "grid_b", "grid_e"}


def test_a_run_is_another_one_with_other_settings(tmp_path):
    train(grid(tmp_path, methods=("vanilla",)))
    changed = grid(tmp_path, methods=("vanilla",), opts=("KD.TEMPERATURE", "2"))
    assert train(changed).rows == ["vanilla"]
    assert len(recorded(tmp_path)) == 3


def test_what_ended_without_being_recorded_is_recorded_by_the_next_call(tmp_path):
    request = grid(tmp_path, methods=KEPT)
    train(request)
    (tmp_path / "results" / "runs.jsonl").unlink()
    assert train(request).started == []
    assert len(recorded(tmp_path)) == 5


def test_records_say_how_and_by_what_a_run_was_made(tmp_path):
    command = ("reproduce.py", "grid_b", "--prefix", str(tmp_path / "output"))
    train(grid(tmp_path, methods=("align",), command=command))
    teacher, run = recorded(tmp_path)
    assert run.command == [*command[:3], f"{tmp_path.name}/output"] and run.table == "grid_b"
    assert run.machine["cpu"] and run.machine["instructions"] and run.machine["processors"]
    assert run.teacher["network"] == "resnet20" and len(run.teacher["sha256"]) == 64
    assert teacher.teacher == {} and teacher.config["DISTILLER.TYPE"] == "NONE"
    text = (tmp_path / "results" / "runs.jsonl").read_text()
    assert str(tmp_path) not in text + (tmp_path / "results" / "queries.jsonl").read_text()


def test_a_folder_that_takes_no_records_is_one_line(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(DataError, match="give another --record"):
        train(grid(tmp_path, methods=("vanilla",)))
