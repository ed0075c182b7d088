"""A table's runs: what they are, where they lie, what of them is there; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mdistiller.commands import reproduce
from mdistiller.config import dump_cfg, identity, load_cfg
from mdistiller.dataset import build_model
from mdistiller.engine.rundir.folder import claim
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.experiments import ALL, Plan, Request, describe
from mdistiller.experiments.derive import scaled_epochs
from mdistiller.experiments.estimate import Estimate, images_of, passes_of
from mdistiller.experiments.job import folder_id

from .study_runs import complete, row_of

KD, OURS = "configs/digits/kd.yaml", "configs/digits/crossbatch_kd.yaml"


def request(prefix: Path, *opts: str, **options) -> Request:
    options = {"pairs": ("res20_res8",), "methods": ("KD",), "trials": 1, "epochs": 2, **options}
    return Request("table1", "digits", prefix=str(prefix), opts=opts, **options)


# ---- what a run is ---------------------------------------------------------------------------


def test_a_run_is_known_by_what_it_computes():
    same = (
        ("DATASET.ROOT", "/elsewhere", "DATASET.NUM_WORKERS", "7"),
        ("SOLVER.DEVICE", "cuda:3", "LOG.PREFIX", "/tmp/x", "EXPERIMENT.NAME", "y"),
        ("DISTILLER.TEACHER_CKPT", "/mnt/output/digits/teacher/student_latest"),
        ("CRD.LOSS.CE_WEIGHT", "3"),  # of another method
        ("SOLVER.LR", "5e-2"),
    )
    other = (
        ("EXPERIMENT.SEED", "1"),
        ("KD.TEMPERATURE", "2"),
        ("SOLVER.EPOCHS", "9"),
        ("DISTILLER.STUDENT", "resnet14"),
        ("DISTILLER.TEACHER_CKPT", "output/digits/another/student_latest"),
        ("SOLVER.LR_DECAY_STAGES", "[6]"),
    )
    plain = identity(load_cfg(KD))
    assert {identity(load_cfg(KD, opts)) for opts in same} == {plain}
    hashes = {identity(load_cfg(KD, opts)) for opts in other}
    assert len(hashes | {plain}) == len(other) + 1


def test_a_folder_holds_the_run_of_its_config_yaml(tmp_path):
    cfg = load_cfg(OURS, ("CROSSBATCH.ALPHA", "0.25"))
    path = tmp_path / "config.yaml"
    for text in (
        dump_cfg(cfg),
        # A key that this version has and an earlier one had not.
        dump_cfg(cfg).replace("  NESTEROV: false\n", ""),
    ):
        path.write_text(text)
        assert folder_id(tmp_path) == identity(load_cfg(path)) == identity(cfg)
    for text in ("", "[", "a: {b"):
        path.write_text(text)
        assert folder_id(tmp_path) is None
    assert folder_id(tmp_path / "nothing") is None


# ---- plan ------------------------------------------------------------------------------------


def test_runs_of_a_pair_and_trial_have_one_seed_and_one_teacher(tmp_path):
    plan = Plan(request(tmp_path, pairs=(), methods=("KD", "AT"), trials=2))
    places = plan.places
    assert len(places) == len({p.id for p in places}) == 2 * 2 * 2 * 2
    order = [(p.cell.column.key, p.trial) for p in places]
    assert list(dict.fromkeys(order)) == [
        *(("res20_res8", 0), ("wrn16_2_wrn16_1", 0)),
        *(("res20_res8", 1), ("wrn16_2_wrn16_1", 1)),
    ]
    assert [p.cell.row.key for p in places[:4]] == ["kd", "kd_crossbatch", "at", "at_crossbatch"]
    groups = {}
    for place, group in zip(places, order, strict=True):
        cfg = plan.jobs[place.id].cfg
        assert place.seed == cfg.EXPERIMENT.SEED
        groups.setdefault(group, set()).add((place.seed, cfg.DISTILLER.TEACHER_CKPT))
    assert [len(group) for group in groups.values()] == [1] * 4
    assert sorted(plan.teachers) == ["resnet20", "wrn_16_2"]


def test_a_student_loads_what_its_teacher_writes(tmp_path):
    plan = Plan(request(tmp_path))
    (teacher,) = plan.teachers.values()
    for job in plan.jobs.values():
        assert str(teacher.folder / "student_latest") == job.cfg.DISTILLER.TEACHER_CKPT
        assert job.folder.parent == tmp_path / "runs" / "digits"
    assert [row_of(fleet[0]) for fleet in plan.work()[0].ready] == ["teacher"]
    complete(teacher)
    work, _ = plan.work()
    assert [row_of(fleet[0]) for fleet in work.ready] == ["kd", "kd_crossbatch"]
    assert not work.waiting_for
    # One teacher for all tables; another training of it makes other students.
    other = {"prefix": str(tmp_path), "methods": ("original",), "pairs": ("res20_res8",)}
    assert Plan(Request("table2", "digits", **other)).teachers["resnet20"].folder == teacher.folder
    assert plan.jobs.keys().isdisjoint(Plan(request(tmp_path, teacher_epochs=30)).jobs)


def test_runs_of_earlier_versions_are_found_by_what_they_are(tmp_path):
    plan = Plan(request(tmp_path))
    (teacher,) = plan.teachers.values()
    complete(teacher)
    job = next(iter(plan.jobs.values()))
    complete(job)
    old = tmp_path / "table1" / "digits" / "any-name"
    old.parent.mkdir(parents=True)
    shutil.copytree(job.folder, old.with_name("any-name.1"))
    job.folder.rename(old)
    moved = teacher.folder.rename(old.with_name(teacher.folder.name))
    (old.parent / "plan.json").write_text("{}")
    again = Plan(request(tmp_path))
    assert again.jobs[job.id].folder == old and again.state(job.id) == "done"
    assert again.teachers["resnet20"].folder == moved
    # A result that is damaged, or of another configuration, is none.
    (old / "result.json").write_text('{"cut sho')
    (tmp_path / "runs.jsonl").unlink()
    assert Plan(request(tmp_path)).state(job.id) == "waiting"


def test_a_given_teacher_is_not_trained(tmp_path):
    plan = Plan(request(tmp_path, "DISTILLER.TEACHER_CKPT", "a/b"))
    assert not plan.teachers
    assert {job.cfg.DISTILLER.TEACHER_CKPT for job in plan.jobs.values()} == {"a/b"}
    assert plan.query.teachers == {"resnet20": "a/b"}
    with pytest.raises(ConfigError, match="one file, but these pairs have the teachers"):
        Plan(request(tmp_path, "DISTILLER.TEACHER_CKPT", "a/b", pairs=()))


def test_missing_teachers_of_cifar(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no download_ckpts here, whatever the developer has
    monkeypatch.setattr("mdistiller.dataset.networks.checkout", lambda: tmp_path)
    wanted = {"pairs": ("res56_res20", "res101_res50"), "prefix": str(tmp_path), "trials": 1}
    plan = Plan(Request("table1", methods=("KD",), **wanted))
    assert set(plan.missing) == {"ResNet101", "resnet56"}
    with pytest.raises(CheckpointError, match=r"tools/download_teachers\.py.*--train-teachers"):
        plan.refuse_missing_teachers()
    trained = Plan(Request("table1", methods=("KD",), train_teachers=True, **wanted))
    trained.refuse_missing_teachers()
    assert set(trained.teachers) == {"ResNet101", "resnet56"}
    # Once trained they need not be asked for.
    for job in trained.teachers.values():
        complete(job)
    assert not Plan(Request("table1", methods=("KD",), **wanted)).missing
    # A published file wins.
    published = plan.missing["resnet56"]
    published.parent.mkdir(parents=True)
    published.touch()
    with_file = Plan(Request("table1", methods=("KD",), train_teachers=True, **wanted))
    assert set(with_file.teachers) == {"ResNet101"}
    assert str(published) in {j.cfg.DISTILLER.TEACHER_CKPT for j in with_file.jobs.values()}


def test_epochs_scale_the_decay_stages():
    cfg_file = "configs/cifar100/baseline/kd_vgg13_vgg8.yaml"
    for epochs, stages in ((240, [150, 180, 210]), (24, [15, 18, 21]), (3, [2]), (1, [])):
        cfg = load_cfg(cfg_file, scaled_epochs(load_cfg(cfg_file), epochs))
        assert (epochs, stages) == (cfg.SOLVER.EPOCHS, cfg.SOLVER.LR_DECAY_STAGES)


def test_what_cannot_be_meant_is_refused_before_anything_is_trained(tmp_path):
    for opts, options, words in (
        ((), {"trials": 0}, "--trials must be 1 or greater"),
        ((), {"teacher_epochs": 0}, "--teacher-epochs must be 1 or greater"),
        (("EXPERIMENT.SEED", "3"), {}, "EXPERIMENT.SEED is set by the plan"),
        (("DATASET.TYPE", "cifar100"), {}, "use --dataset"),
        (("KD.TEMPRATURE", "3"), {}, "did you mean KD.TEMPERATURE?"),
        (("SOLVER.LR",), {}, "'SOLVER.LR' is alone"),
        (("SOLVER.LR", "-1"), {}, "SOLVER.LR must be greater than 0"),
    ):
        with pytest.raises(ConfigError) as error:
            Plan(request(tmp_path, *opts, **options))
        assert words in str(error.value)


# ---- states ----------------------------------------------------------------------------------


def test_states_of_a_run(tmp_path):
    job = next(iter(Plan(request(tmp_path)).jobs.values()))
    assert job.state == "waiting"
    with job.open_log() as log:
        log.write("".join(f"line {n}\n" for n in range(20)) + "error: why\nand more\n")
    job.mark_failed(1)
    assert job.state == "failed"
    assert job.log_tail() == job.failure()["tail"] and len(job.log_tail()) == 8
    assert job.last_words() == "error: why"
    with job.open_log() as log:
        log.write("of the next process\n")
    assert job.log_tail() == ["of the next process"]
    (job.folder).mkdir(parents=True)
    with claim(job.folder / ".lock"):
        assert job.state == "running"
    job.forget_failure()
    complete(job)
    assert job.state == "done"
    # On another machine it is the same run.
    moved = Plan(request(tmp_path, "SOLVER.DEVICE", "cpu", "DATASET.ROOT", "/x")).jobs[job.id]
    assert (moved.folder, moved.state) == (job.folder, "done")
    config = job.folder / "config.yaml"
    config.write_text(config.read_text().replace("TEMPERATURE: 4", "TEMPERATURE: 5"))
    assert job.state == "waiting"


# ---- dry run ---------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_there_and_writes_nothing(tmp_path):
    small = ("DISTILLER.TEACHER", "convnet12", "DISTILLER.STUDENT", "convnet12")
    wanted = request(tmp_path, "SOLVER.BATCH_SIZE", "4", *small, trials=2)
    before = describe(wanted, workers=2, threads=1)
    assert not list(tmp_path.iterdir())
    assert "4 runs of 2 cells and 1 teachers (4 waiting)" in before
    assert "left: 5 runs," in before and "with 2 at a time" in before
    assert "the fastest of 3 steps of" in before and "processes:" not in before
    plan = Plan(wanted)
    (teacher,) = plan.teachers.values()
    complete(teacher)
    jobs = list(plan.jobs.values())
    complete(jobs[0])
    jobs[1].mark_failed(1)
    after = describe(wanted, workers=2, threads=1, fleet_size=ALL)
    assert "(1 done, 1 failed, 2 waiting)" in after
    assert f"{jobs[1].title}  failed: it left no message" in after
    assert "processes: 1 x 2 runs; those of" in after
    assert f"   2  {jobs[2].title} to {jobs[3].title}\n" in after


def test_a_dry_run_names_rows_of_another_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(Estimate, "_time", lambda self, cfg, name: 1e-9)
    methods = ("kd", "kd_crossbatch", "dist", "mlkd")
    options = {"pairs": ("res56_res20",), "methods": methods, "trials": 1}
    wanted = Request("table3", prefix=str(tmp_path), train_teachers=True, **options)
    text = describe(wanted, workers=1, threads=1)
    assert "another budget than most rows, 480 epochs and two views of an image: mlkd" in text
    assert not list(tmp_path.iterdir())


def test_times_are_those_of_timed_steps(tmp_path, monkeypatch):
    seconds = {"resnet8": 1e-3, "resnet20": 2e-3}
    monkeypatch.setattr(Estimate, "_time", lambda self, cfg, name: seconds[name])
    kd = load_cfg(KD, ("DISTILLER.STUDENT", "resnet8", "SOLVER.EPOCHS", "4"))
    estimate = Estimate(threads=1)
    # Teacher, three passes of the student, the test.
    assert estimate.seconds(kd) == pytest.approx(4 * (1347 * 5e-3 + 450 * 1e-3))
    assert estimate.seconds(kd, fleet=10) == pytest.approx(4 * (1347 * 3.2e-3 + 450 * 1e-3))
    assert estimate.source == (
        "the fastest of 3 steps of resnet8, resnet20 and the cost model of docs; "
        "other work on this machine adds to it"
    )


def test_the_cost_model_counts_passes_and_images():
    assert passes_of(load_cfg(KD)) == 3
    given = {"PERIOD 1": 8, "PERIOD 10": 5.3, "REFERENCE same": 5, "BATCH_SIZE 16": 5.75}
    for words, passes in given.items():
        key, value = words.split()
        assert passes_of(load_cfg(OURS, (f"CROSSBATCH.{key}", value))) == pytest.approx(passes)
    assert images_of(load_cfg(KD)) == (1347, 450)
    assert images_of(load_cfg(KD, ("DATASET.HOLDOUT", "270"))) == (1077, 270)
    assert images_of(load_cfg("configs/glyphs/kd.yaml", ("DATASET.SUBSET", "70")))[0] == 70


def test_disk_is_what_checkpoints_hold():
    states = (build_model("digits", name, 10).state_dict() for name in ("resnet8", "resnet20"))
    student, teacher = (sum(v.numel() * v.element_size() for v in s.values()) for s in states)
    estimate = Estimate(1)
    two = ("DISTILLER.STUDENT", "resnet8")
    assert estimate.disk(load_cfg(KD, two)) == 2 * (3 * student + teacher)
    freq = ("LOG.SAVE_CHECKPOINT_FREQ", "5")
    assert estimate.disk(load_cfg(KD, (*two, *freq))) == 4 * (3 * student + teacher)


def test_overrides_may_stand_behind_a_list():
    for words in (
        "--methods KD alpha0.25 SOLVER.LR 0.1 LOG.WANDB True",
        "SOLVER.LR 0.1 LOG.WANDB True --methods KD alpha0.25",
        "--methods KD alpha0.25 SOLVER.LR 0.1 --pairs res20_res8 LOG.WANDB True",
    ):
        args = reproduce.parse_arguments(["grid_b", *words.split()])
        assert args.methods == ["KD", "alpha0.25"]
        assert args.pairs in ([], ["res20_res8"])
        found = dict(zip(args.opts[0::2], args.opts[1::2], strict=True))
        assert found == {"SOLVER.LR": "0.1", "LOG.WANDB": "True"}


def test_what_was_asked_for_is_kept_without_paths(tmp_path):
    plan = Plan(request(tmp_path, "DATASET.ROOT", "/data", "SOLVER.LR", "1e-1"))
    (teacher,) = plan.teachers.values()
    assert plan.query.overrides == ("SOLVER.LR", "1e-1")
    assert plan.query.teachers == {"resnet20": f"{teacher.folder.name}/student_latest"}
    assert "/data" not in json.dumps(plan.query.__dict__)
