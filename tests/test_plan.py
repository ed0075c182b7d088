"""The plan of a table's runs, their identity, state and cost; nothing is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdistiller.commands import reproduce
from mdistiller.engine.cfg import dump_cfg, load_cfg
from mdistiller.engine.rundir.folder import claim, is_locked
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.experiments import Request, describe, make_plan
from mdistiller.experiments.estimate import disk_of, network_size, work_of
from mdistiller.experiments.job import Job, identity, identity_hash
from mdistiller.experiments.plan import scaled_epochs
from mdistiller.experiments.plan_file import load_plan, save_plan

KD = "configs/digits/kd.yaml"


def request(prefix: Path, *opts: str, **options) -> Request:
    options = {"pairs": ("res20_res8",), "methods": ("KD",), "trials": 1, **options}
    return Request("table1", "digits", prefix=str(prefix), opts=opts, **options)


def finish(job: Job, **result) -> None:
    """Leave what a complete run leaves."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.yaml").write_text(dump_cfg(job.cfg))
    (job.folder / "result.json").write_text(json.dumps({"seconds": 2.0, "epochs": 1, **result}))


# ---- identity --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opts",
    [
        ("DATASET.ROOT", "/elsewhere", "DATASET.NUM_WORKERS", "7"),
        ("SOLVER.DEVICE", "cuda:3", "LOG.PREFIX", "/tmp/x", "EXPERIMENT.NAME", "y"),
        ("DISTILLER.TEACHER_CKPT", "/mnt/output/digits/teacher/student_latest"),
        ("CRD.LOSS.CE_WEIGHT", "3"),  # of another method
    ],
)
def test_places_do_not_make_another_run(opts: tuple[str, ...]) -> None:
    assert identity_hash(load_cfg(KD, opts)) == identity_hash(load_cfg(KD))


@pytest.mark.parametrize(
    "opts",
    [
        ("EXPERIMENT.SEED", "1"),
        ("KD.TEMPERATURE", "2"),
        ("SOLVER.EPOCHS", "9"),
        ("DISTILLER.STUDENT", "resnet14"),
        ("DISTILLER.TEACHER_CKPT", "output/digits/another/student_latest"),
        ("SOLVER.LR_DECAY_STAGES", "[6]"),
    ],
)
def test_whatever_is_computed_makes_another_run(opts: tuple[str, ...]) -> None:
    assert identity_hash(load_cfg(KD, opts)) != identity_hash(load_cfg(KD))


def test_identity_is_that_of_the_recorded_configuration(tmp_path: Path) -> None:
    job = Job("configs/digits/crossbatch_kd.yaml", ("CROSSBATCH.ALPHA", "0.25"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_cfg(job.cfg))
    assert identity(load_cfg(path)) == identity(job.cfg)
    # A key that this version has and an earlier one had not.
    path.write_text(dump_cfg(job.cfg).replace("  NESTEROV: false\n", ""))
    assert identity(load_cfg(path)) == identity(job.cfg)


# ---- plan ------------------------------------------------------------------------------------


def test_runs_are_paired_by_seed_and_grouped_by_pair_and_trial(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path, pairs=(), methods=("KD", "AT"), trials=2))
    assert len(plan.runs) == 2 * 2 * 2 * 2
    groups = plan.groups()
    assert list(groups) == [
        *(("res20_res8", 0), ("wrn16_2_wrn16_1", 0)),
        *(("res20_res8", 1), ("wrn16_2_wrn16_1", 1)),
    ]
    for runs in groups.values():
        rows = [run.cell.row.key for run in runs]
        assert rows == ["kd", "kd_crossbatch", "at", "at_crossbatch"]
        assert len({(run.seed, run.teacher.folder) for run in runs}) == 1
        assert {run.job.cfg.EXPERIMENT.SEED for run in runs} == {runs[0].seed}
    assert len({run.seed for run in plan.runs}) == 4
    assert len({job.folder for job in plan.jobs}) == 16 + 2
    assert sorted(plan.teachers) == ["resnet20", "wrn_16_2"]


def test_a_student_loads_what_its_teacher_writes(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path))
    (teacher,) = plan.teachers.values()
    for run in plan.runs:
        assert str(teacher.folder / "student_latest") == run.job.cfg.DISTILLER.TEACHER_CKPT
        assert run.job.folder.parent == tmp_path / "table1" / "digits"
        assert plan.needs[run.job] == teacher
    assert teacher.folder.parent == tmp_path / "teachers" / "digits"
    # One teacher for all tables; another training of it makes other students.
    other = Request("table2", "digits", prefix=str(tmp_path), methods=("original",))
    assert make_plan(other).teachers["resnet20"] == teacher
    longer = make_plan(request(tmp_path, teacher_epochs=30))
    assert {r.job.folder for r in longer.runs}.isdisjoint(r.job.folder for r in plan.runs)


def test_a_given_teacher_is_not_trained(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path, "DISTILLER.TEACHER_CKPT", "a/b"))
    assert not plan.teachers
    assert {r.job.cfg.DISTILLER.TEACHER_CKPT for r in plan.runs} == {"a/b"}
    with pytest.raises(ConfigError, match="one file, but these pairs have the teachers"):
        make_plan(request(tmp_path, "DISTILLER.TEACHER_CKPT", "a/b", pairs=()))


def test_missing_teachers_of_cifar(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # no download_ckpts here, whatever the developer has
    monkeypatch.setattr("mdistiller.dataset.networks.checkout", lambda: tmp_path)
    wanted = {"pairs": ("res56_res20", "res101_res50"), "prefix": str(tmp_path)}
    plan = make_plan(Request("table1", **wanted))
    assert list(plan.missing) == ["ResNet101", "resnet56"]
    with pytest.raises(CheckpointError, match=r"tools/download_teachers\.py.*--train-teachers"):
        plan.refuse_missing_teachers()
    trained = make_plan(Request("table1", train_teachers=True, **wanted))
    trained.refuse_missing_teachers()
    assert list(trained.teachers) == ["ResNet101", "resnet56"]
    # Once trained they need not be asked for.
    for job in trained.teachers.values():
        finish(job)
    assert not make_plan(Request("table1", **wanted)).missing
    # A published file wins.
    published = plan.missing["resnet56"]
    published.parent.mkdir(parents=True)
    published.touch()
    with_file = make_plan(Request("table1", train_teachers=True, **wanted))
    assert list(with_file.teachers) == ["ResNet101"]
    files = {r.job.cfg.DISTILLER.TEACHER_CKPT for r in with_file.runs}
    assert str(published) in files


@pytest.mark.parametrize(
    ("epochs", "stages"),
    [(240, [150, 180, 210]), (24, [15, 18, 21]), (8, [5, 6, 7]), (3, [2]), (1, [])],
)
def test_epochs_scale_the_decay_stages(epochs: int, stages: list[int]) -> None:
    cfg_file = "configs/cifar100/baseline/kd_vgg13_vgg8.yaml"
    cfg = load_cfg(cfg_file, scaled_epochs(load_cfg(cfg_file), epochs))
    assert (epochs, stages) == (cfg.SOLVER.EPOCHS, cfg.SOLVER.LR_DECAY_STAGES)


@pytest.mark.parametrize("name", ["trials", "epochs", "teacher_epochs"])
def test_counts_are_positive(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be 1 or greater"):
        make_plan(request(tmp_path, **{name: 0}))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("EXPERIMENT.SEED", "3"), "EXPERIMENT.SEED is set by the plan"),
        (("DATASET.TYPE", "cifar100"), "use --dataset"),
        (("KD.TEMPRATURE", "3"), "did you mean KD.TEMPERATURE?"),
        (("SOLVER.LR",), "'SOLVER.LR' is alone"),
        (("SOLVER.LR", "-1"), "SOLVER.LR must be greater than 0"),
    ],
)
def test_wrong_overrides_are_refused_before_anything_is_trained(tmp_path, opts, words) -> None:
    with pytest.raises(ConfigError) as error:
        make_plan(request(tmp_path, *opts))
    assert words in str(error.value)


def test_plan_file_is_the_union_of_all_calls(tmp_path: Path) -> None:
    assert save_plan(make_plan(request(tmp_path, methods=("AT",)))) == []
    assert save_plan(make_plan(request(tmp_path, trials=2))) == []
    assert save_plan(make_plan(request(tmp_path, pairs=("wrn16_2_wrn16_1",)))) == []
    root = tmp_path / "table1" / "digits"
    found = load_plan(root)
    assert [row["key"] for row in found["rows"]] == ["kd", "kd_crossbatch", "at", "at_crossbatch"]
    assert [c["key"] for c in found["columns"]] == ["res20_res8", "wrn16_2_wrn16_1"]
    assert [(c["row"], c["column"], len(c["runs"])) for c in found["cells"]] == [
        *(("kd", "res20_res8", 2), ("kd", "wrn16_2_wrn16_1", 1)),
        *(("kd_crossbatch", "res20_res8", 2), ("kd_crossbatch", "wrn16_2_wrn16_1", 1)),
        *(("at", "res20_res8", 1), ("at_crossbatch", "res20_res8", 1)),
    ]
    # Fewer trials later take nothing away.
    save_plan(make_plan(request(tmp_path, trials=1)))
    assert load_plan(root) == found
    job = make_plan(request(tmp_path)).runs[0].job
    assert root / found["cells"][0]["runs"][0]["folder"] == job.folder
    teacher = root / found["teachers"][0]["folder"]
    assert teacher.resolve() == make_plan(request(tmp_path)).teachers["resnet20"].folder.resolve()


def test_plan_file_replaces_cells_with_other_settings_and_says_so(tmp_path: Path) -> None:
    save_plan(make_plan(request(tmp_path, methods=("KD", "AT"), trials=3)))
    remarks = save_plan(make_plan(request(tmp_path, epochs=4)))
    assert "2 cells of plan.json had other settings" in remarks[0]
    assert "2 other cells" in remarks[1]
    cells = load_plan(tmp_path / "table1" / "digits")["cells"]
    assert [len(c["runs"]) for c in cells] == [1, 1, 3, 3]


# ---- states ----------------------------------------------------------------------------------


def test_rows_of_another_version_are_left_out_of_the_plan_file(tmp_path: Path) -> None:
    plan = make_plan(request(tmp_path))
    save_plan(plan)
    path = plan.request.root / "plan.json"
    path.write_text(path.read_text().replace('"kd_crossbatch"', '"kd_ours"'))
    assert save_plan(make_plan(request(tmp_path))) == [
        "rows of another version are left out of plan.json: kd_ours"
    ]
    assert [row["key"] for row in load_plan(plan.request.root)["rows"]] == ["kd", "kd_crossbatch"]


def test_states_of_a_run(tmp_path: Path) -> None:
    job = make_plan(request(tmp_path)).runs[0].job
    assert job.state() == "waiting"
    job.mark_failed(1)
    assert job.state() == "failed"
    assert json.loads(job.failure_file.read_text())["exit_code"] == 1
    with claim(job.folder / ".lock"):
        assert is_locked(job.folder / ".lock")
        assert job.state() == "running"
    assert job.state() == "failed"
    job.forget_failure()
    finish(job)
    assert job.state() == "done"
    # On another machine it is the same run.
    moved = make_plan(request(tmp_path, "SOLVER.DEVICE", "cpu", "DATASET.ROOT", "/x")).runs[0].job
    assert (moved.folder, moved.state()) == (job.folder, "done")
    (job.folder / "result.json").write_text('{"cut sho')
    assert job.state() == "waiting"
    finish(job)
    config = job.folder / "config.yaml"
    config.write_text(config.read_text().replace("TEMPERATURE: 4", "TEMPERATURE: 5"))
    assert job.state() == "waiting"


def test_log_tail_is_that_of_the_last_process(tmp_path: Path) -> None:
    job = make_plan(request(tmp_path)).runs[0].job
    for text in ("first\n", "".join(f"line {n}\n" for n in range(20)), "a\nb\n"):
        with job.open_log() as log:
            log.write(text)
        tail = job.log_tail()
        assert tail == text.splitlines()[-8:]


# ---- dry run ---------------------------------------------------------------------------------


def test_dry_run_uses_measured_times_and_writes_nothing(tmp_path: Path) -> None:
    wanted = request(tmp_path, epochs=10, trials=3)
    before = describe(wanted, workers=2, threads=1)
    assert not list(tmp_path.iterdir())
    assert "6 runs of 2 cells and 1 teachers" in before
    assert "(7 waiting)" in before
    assert "timed steps of resnet8, resnet20" in before
    plan = make_plan(wanted)
    for job in plan.jobs[:3]:  # the teacher and one run of each cell
        finish(job, seconds=100.0, epochs=10)
    after = describe(wanted, workers=2, threads=1)
    assert "(3 done, 4 waiting)" in after
    assert "estimated from 3 finished runs of the same kind" in after
    # Four runs of 100 s, two at a time; the teacher has 15 epochs of its own.
    assert "left: 7 min of training, about 3 min with 2 at a time" in after


def test_cost_model_counts_passes_over_the_networks() -> None:
    networks = {n: network_size("digits", n).macs for n in ("resnet20", "resnet8")}
    cfg = load_cfg(KD, ("SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]"))
    vanilla = work_of(cfg)
    assert vanilla.teacher == 1347 * networks["resnet20"]
    assert vanilla.student == (3 * 1347 + 450) * networks["resnet8"]
    ours = load_cfg(
        "configs/digits/crossbatch_kd.yaml",
        ("SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]"),
    )
    assert work_of(ours).student - vanilla.student == 5 * 1347 * networks["resnet8"]
    assert work_of(load_cfg("configs/digits/teacher.yaml")).teacher == 0


def test_disk_is_what_checkpoints_hold() -> None:
    student = network_size("digits", "resnet8").state_bytes
    teacher = network_size("digits", "resnet20").state_bytes
    assert disk_of(load_cfg(KD)) == 2 * (3 * student + teacher)
    assert disk_of(load_cfg(KD, ("LOG.SAVE_CHECKPOINT_FREQ", "5"))) == 4 * (3 * student + teacher)


@pytest.mark.parametrize(
    "words",
    [
        "--methods KD alpha0.25 SOLVER.LR 0.1 LOG.WANDB True",
        "SOLVER.LR 0.1 LOG.WANDB True --methods KD alpha0.25",
        "--methods KD alpha0.25 SOLVER.LR 0.1 --pairs res20_res8 LOG.WANDB True",
    ],
)
def test_overrides_may_stand_behind_a_list(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduce.py", "grid_b", *words.split()])
    args = reproduce.parse_arguments()
    assert args.methods == ["KD", "alpha0.25"]
    assert args.pairs in ([], ["res20_res8"])
    found = dict(zip(args.opts[0::2], args.opts[1::2], strict=True))
    assert found == {"SOLVER.LR": "0.1", "LOG.WANDB": "True"}
