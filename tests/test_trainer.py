"""The training loop against mdistiller's own logs, and what a run leaves behind."""

from __future__ import annotations

import io
import json

import pytest
import torch

from mdistiller.console import log_msg
from mdistiller.distillers import CRD, KD, Distiller, Vanilla, distiller_dict
from mdistiller.engine import BaseTrainer, DistillationOrientedTrainer, trainer_dict
from mdistiller.engine.cfg import CFG
from mdistiller.engine.meters import AverageMeter, DeviceMeter, accuracy, validate
from mdistiller.engine.optim import adjust_learning_rate, build_optimizer, learning_rate
from mdistiller.errors import CheckpointError, MdistillerError, NonFiniteError
from mdistiller.models import cifar_model_dict

from .golden_rules import fill, golden_json, images, labels, normal
from .toys import ToyNet, batches, config, loader, mostly_slow, networks

CrossBatchKD = distiller_dict["CROSSBATCH_KD"]
GOLDEN = golden_json("trainer")
RUNS = [name for name, run in GOLDEN["runs"].items() if "error" not in run]


def golden_loaders():
    import numpy as np

    train = []
    for i in range(4):
        index = torch.arange(16) + 16 * i
        contrast = torch.from_numpy(np.random.RandomState(4900 + i).randint(0, 64, (16, 9)))
        contrast[:, 0] = index
        train.append((images(4000 + i, 16, 32), labels(4500 + i, 16, 10), index, contrast))
    return train, [(images(4100 + i, 16, 32), labels(4600 + i, 16, 10)) for i in range(2)]


def golden_trainer(name: str, tmp_path, epochs: int = 4) -> BaseTrainer:
    trainer, method = name.split("|")
    cfg = config(tmp_path)
    cfg.merge_from_list(GOLDEN["setting"]["overrides"])
    cfg.merge_from_list(["SOLVER.EPOCHS", epochs, "EXPERIMENT.NAME", "run"])
    cfg.merge_from_list(["CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 8])
    cfg.merge_from_list(GOLDEN["runs"][name].get("config_overrides", []))
    student, teacher = (cifar_model_dict[m][0](num_classes=10) for m in ("resnet8", "resnet14"))
    student.load_state_dict(fill(student.state_dict(), "golden:student:"))
    teacher.load_state_dict(fill(teacher.state_dict(), "golden:teacher:", gain=0.5))
    cls = distiller_dict[method]
    arguments = [student] if method == "NONE" else [student, teacher, cfg]
    distiller = cls(*arguments, *([64] if cls is CRD else []))
    own = {
        k: v
        for k, v in distiller.state_dict().items()
        if not k.startswith(("student.", "teacher."))
    }
    distiller.load_state_dict(fill(own, "golden:extra:"), strict=False)
    return trainer_dict[trainer]("proj/run", distiller, *golden_loaders(), cfg)


def student_norm(trainer) -> float:
    return torch.cat([p.detach().flatten() for p in trainer.distiller.student.parameters()]).norm()


def check_log(found: list[dict], expected: list[dict], tolerance: dict) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a["epoch"] == b["epoch"]
        assert a["lr"] == pytest.approx(b["lr"], rel=1e-12)
        for key in ("train_loss", "test_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=10 * tolerance[key])
        for key, samples in (("train_acc", 64), ("test_acc", 32), ("test_acc_top5", 32)):
            assert a[key] == pytest.approx(b[key], abs=200 / samples)


@pytest.mark.parametrize("name", mostly_slow(RUNS, "base|KD", "dot|KD", "crd|CRD"))
def test_run_equals_mdistillers(name, tmp_path):
    golden = GOLDEN["runs"][name]
    trainer = golden_trainer(name, tmp_path)
    trainer.train()
    folder = tmp_path / "proj" / "run"
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tolerance = golden["largest_change_of_log_values_under_1e-6_perturbation"]
    check_log(found, golden["log"], tolerance)
    assert student_norm(trainer) == pytest.approx(golden["student_param_l2_after"], rel=1e-5)
    assert {p.name for p in folder.iterdir()} >= set(golden["files"])

    for file, facts in golden["checkpoints"].items():
        state = torch.load(folder / file, weights_only=True)
        assert state.keys() >= facts["keys"].keys()
        assert len(state["model"]) == facts["model_keys"]
        assert next(iter(state["model"])) == facts["model_first_key"]
        if "optimizer" not in state:
            continue
        (group,) = state["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(state_lr(facts), rel=1e-12)
        assert type(group["lr"]) is float
        momenta = facts["optimizer_group_momentum"]
        assert {k: group[k] for k in momenta} == pytest.approx(momenta)
        first = state["optimizer"]["state"][0]
        assert list(first) == facts["optimizer_state_keys_of_first_param"]


def state_lr(facts: dict) -> float:
    return facts["optimizer_group_lr"]


def test_worklog_has_mdistillers_format(tmp_path):
    golden_trainer("base|NONE", tmp_path).train()
    found = (tmp_path / "proj" / "run" / "worklog.txt").read_text()
    expected = GOLDEN["runs"]["base|NONE"]["worklog_txt"]
    # Same text but for the last digit of a loss that rounding may tip over.
    assert len(found) == len(expected)
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_ends_with_the_same_bits(name, tmp_path):
    whole = golden_trainer(name, tmp_path / "whole")
    whole.train()
    golden_trainer(name, tmp_path / "part", epochs=2).train()
    part = golden_trainer(name, tmp_path / "part")
    part.train(resume=True, allow_changes=True)  # more epochs
    a, b = (t.distiller.state_dict() for t in (whole, part))
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if "second" not in k}
            for line in (tmp_path / w / "proj/run/metrics.jsonl").read_text().splitlines()
        ]
        for w in ("whole", "part")
    ]
    assert logs[0] == logs[1]
    worklogs = [(tmp_path / w / "proj/run/worklog.txt").read_text() for w in ("whole", "part")]
    assert worklogs[0] == worklogs[1]


def test_mdistillers_checkpoint_resumes(tmp_path):
    """Only the four keys that mdistiller writes, best_acc as a tensor."""
    golden_trainer("base|KD", tmp_path, epochs=2).train()
    latest = tmp_path / "proj" / "run" / "latest"
    state = torch.load(latest, weights_only=True)
    keys = ("epoch", "model", "optimizer", "best_acc")
    state = {**{k: state[k] for k in keys}, "best_acc": torch.tensor(state["best_acc"])}
    torch.save(state, latest)
    trainer = golden_trainer("base|KD", tmp_path)
    trainer.train(resume=True)  # more epochs, but mdistiller's file does not say so
    assert student_norm(trainer) == pytest.approx(
        GOLDEN["runs"]["base|KD"]["student_param_l2_after"], rel=1e-5
    )


# ---- the run's folder ----------------------------------------------------------------------


def toy_trainer(tmp_path, *opts, **options) -> BaseTrainer:
    cfg = config(tmp_path, *opts)
    student, teacher = networks()
    data = loader(**options)
    return BaseTrainer("run", KD(student, teacher, cfg), data, data, cfg)


def test_result_has_last_and_best(tmp_path):
    result = toy_trainer(tmp_path, "SOLVER.EPOCHS", 3, "SOLVER.LR", 2.0).train()
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    accuracies = [e["test_acc"] for e in log]
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    assert result["last_top1"] == accuracies[-1]
    assert result["best_top1"] == max(accuracies)
    assert accuracies[result["best_epoch"] - 1] == result["best_top1"]
    for key in ("seed", "versions", "device", "seconds", "commit", "student", "distiller"):
        assert key in result
    best, last = (torch.load(tmp_path / "run" / f, weights_only=True) for f in ("best", "latest"))
    assert best["epoch"] == result["best_epoch"]
    assert last["epoch"] == 3


def test_starting_afresh_loses_nothing(tmp_path, capsys):
    toy_trainer(tmp_path).train()
    (tmp_path / "run" / "mine.txt").write_text("notes")
    toy_trainer(tmp_path).train()
    toy_trainer(tmp_path).train()
    assert (tmp_path / "run.1" / "mine.txt").read_text() == "notes"
    assert (tmp_path / "run.2" / "result.json").exists()
    assert "run.1" in capsys.readouterr().out


def test_second_process_on_the_same_folder_is_refused(tmp_path):
    from mdistiller.engine.rundir.folder import RunLock

    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run")
    with pytest.raises(MdistillerError, match="another process"):
        toy_trainer(tmp_path).train()
    lock.release()
    toy_trainer(tmp_path).train()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, capsys):
    plain = toy_trainer(tmp_path / "plain")
    plain.train()
    resumed = toy_trainer(tmp_path / "resumed")
    resumed.train(resume=True)
    assert "no checkpoint yet" in capsys.readouterr().out
    assert student_norm(plain) == student_norm(resumed)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    toy_trainer(tmp_path).train()
    latest = tmp_path / "run" / "latest"
    sound = latest.read_bytes()
    latest.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(CheckpointError, match="latest"):
        toy_trainer(tmp_path).train(resume=True)
    state = torch.load(io.BytesIO(sound), weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "config"}, latest)
    cfg = config(tmp_path)
    other = BaseTrainer("run", Vanilla(ToyNet(7)), loader(), loader(), cfg)
    with pytest.raises(CheckpointError, match="does not fit"):
        other.train(resume=True)
    latest.write_bytes(sound)
    with pytest.raises(CheckpointError, match="another teacher .*ResNet50.*none"):
        other.train(resume=True)
    assert latest.read_bytes() == sound


def test_unwritable_prefix_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MdistillerError, match="LOG.PREFIX"):
        toy_trainer(tmp_path / "file").train()


def test_failed_write_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    toy_trainer(tmp_path, "SOLVER.EPOCHS", 1).train()
    before = (tmp_path / "run" / "latest").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        toy_trainer(tmp_path).train(resume=True, allow_changes=True)
    assert (tmp_path / "run" / "latest").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_exploding_training_names_epoch_step_and_loss(tmp_path):
    with pytest.raises(NonFiniteError, match=r"epoch 1, step \d: .*(loss_ce|gradient)"):
        toy_trainer(tmp_path, "SOLVER.LR", 1e30).train()


def test_tensorboard_holds_the_five_scalars_and_the_weights(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    cfg = config(tmp_path, "LOG.TENSORBOARD_FREQ", 2)
    student, teacher = networks()
    trainer_dict["crossbatch"](
        "run", CrossBatchKD(student, teacher, cfg), loader(), loader(), cfg
    ).train()
    (file,) = (tmp_path / "run" / "train.events").iterdir()
    data, tags = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append(event.step)
        data = data[16 + length :]
    for key in ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss"):
        assert tags[key] == [1, 2]
    assert tags["crossbatch/kd"] == [2, 4, 6, 8]
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"ce", "kd", "w_ce", "c_ce", "c_kd", "c_12", "lam", "conflict"} <= entry[
        "crossbatch"
    ].keys()


# ---- optimizers, schedules, meters ---------------------------------------------------------


def test_dot_optimizer_example():
    golden = GOLDEN["dot_optimizer_example"]
    p = [torch.nn.Parameter(torch.from_numpy(normal(f"golden:dot:p{j}", (4,)))) for j in range(3)]
    optimizer = DistillationOrientedTrainer(
        p, golden["lr"], golden["momentum"], golden["momentum_kd"], golden["weight_decay"]
    )
    for step, expected in enumerate(golden["parameters_after_each_step"]):
        for kind, reached in (("kd", (0, 2)), ("ce", (0, 1))):
            optimizer.zero_grad()
            for j in reached:
                p[j].grad = torch.from_numpy(normal(f"golden:dot:{kind}:{step}:{j}", (4,)))
            optimizer.step_kd() if kind == "kd" else optimizer.step()
        assert torch.allclose(
            torch.stack(list(p)), torch.tensor(expected, dtype=torch.float64), rtol=1e-12
        )


@pytest.mark.parametrize("table", GOLDEN["learning_rate_schedule"]["tables"])
def test_step_schedule(table):
    stages, rate, lr = (
        table.replace("stages=", "").replace("rate=", "").replace("lr=", "").rsplit(" ", 2)
    )
    cfg = CFG.clone()
    cfg.merge_from_list(
        ["SOLVER.LR_DECAY_STAGES", stages, "SOLVER.LR_DECAY_RATE", rate, "SOLVER.LR", lr]
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=float(lr))
    for epoch, expected in GOLDEN["learning_rate_schedule"]["tables"][table].items():
        assert adjust_learning_rate(int(epoch), cfg, optimizer) == expected["returned"]
        assert optimizer.param_groups[0]["lr"] == expected["returned"]


def test_warm_up_and_cosine():
    cfg = CFG.clone()
    cfg.merge_from_list(
        ["SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", 4, "SOLVER.EPOCHS", 14]
    )
    rates = [learning_rate(epoch, cfg) for epoch in range(1, 15)]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert rates[4] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.025)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.002


def trained(tmp_path, *opts) -> torch.Tensor:
    trainer = toy_trainer(tmp_path, *opts)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.distiller.student.parameters()])


@pytest.mark.parametrize(
    "opts",
    [
        ("SOLVER.NESTEROV", True),
        ("SOLVER.TYPE", "AdamW"),
        ("SOLVER.SCHEDULE", "cosine"),
        ("SOLVER.LABEL_SMOOTHING", 0.1),
        ("SOLVER.MOMENTUM", 0.5),
        ("SOLVER.WEIGHT_DECAY", 0.1),
        ("KD.TEMPERATURE", 2.5),
    ],
)
def test_option_changes_the_training(tmp_path, opts):
    assert not torch.allclose(trained(tmp_path / "a"), trained(tmp_path / "b", *opts))


def test_warm_up_changes_the_training(tmp_path):
    three = ("SOLVER.EPOCHS", 3)
    plain = trained(tmp_path / "a", *three)
    assert not torch.allclose(plain, trained(tmp_path / "b", *three, "SOLVER.WARMUP_EPOCHS", 2))


def test_optimizers_are_what_they_say(tmp_path):
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    cfg = config(tmp_path, "SOLVER.NESTEROV", True, "SOLVER.WEIGHT_DECAY", 0.3)
    sgd = build_optimizer(parameters, cfg)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["weight_decay"] == 0.3
    cfg.merge_from_list(["SOLVER.TYPE", "AdamW"])
    adamw = build_optimizer(parameters, cfg)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)


def test_meters_and_messages():
    golden = GOLDEN["average_meter_example"]
    meter = AverageMeter()
    for value, n in golden["updates"]:
        meter.update(value, n)
    assert (meter.val, meter.avg, meter.sum, meter.count) == tuple(
        golden[k] for k in ("val", "avg", "sum", "count")
    )
    device = DeviceMeter()
    for value, n in golden["updates"]:
        device.update({"x": torch.tensor(value)}, n)
    assert device.averages() == {"x": golden["avg"]}
    for mode, text in GOLDEN["log_msg_example"].items():
        assert log_msg("text", mode) == text


def test_each_name_has_the_mean_of_the_steps_that_gave_it():
    """A loss may have another name in some steps, such as one that is off at first."""
    meter = DeviceMeter()
    for values, n in (({"a": 1.0}, 2), ({"b": 9.0}, 2), ({"a": 4.0, "b": 3.0}, 1), ({}, 7)):
        meter.update({name: torch.tensor(value) for name, value in values.items()}, n)
    assert meter.averages() == {"a": (1 * 2 + 4) / 3, "b": (9 * 2 + 3) / 3}
    other = DeviceMeter()
    other.load_state_dict(meter.state_dict())
    assert other.averages() == meter.averages()
    earlier = {"names": ["a"], "sums": torch.tensor([6.0], dtype=torch.float64), "count": 3}
    other.load_state_dict(earlier)
    other.update({"a": torch.tensor(10.0)})
    assert other.averages() == {"a": 4.0}


def test_batches_may_be_made_ahead_of_the_steps(tmp_path):
    """As a prefetcher does: which steps get an auxiliary batch depends on their numbers alone."""
    cfg = config(tmp_path, "CROSSBATCH.PERIOD", 2)
    student, teacher = networks()
    data = loader()
    trainer = trainer_dict["crossbatch"](
        "run", CrossBatchKD(student, teacher, cfg), data, data, cfg
    )
    ahead = [*trainer.batches(1), *trainer.batches(2)]
    assert [b.step for b in ahead] == list(range(8))
    assert [b.auxiliary is not None for b in ahead] == [True, False] * 4
    trainer.distiller.train()
    for batch in ahead:
        trainer.step(batch, 1 + batch.step // 4)
    other = [b for epoch in (1, 2) for b in trainer.batches(epoch)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(ahead, other, strict=True))
    rest = list(trainer.batches(2, 1))
    assert [b.step for b in rest] == [5, 6, 7]
    assert torch.equal(rest[1].auxiliary.image, ahead[6].auxiliary.image)


def test_there_is_no_checkpoint_to_speak_of_before_the_first(tmp_path):
    with pytest.raises(NonFiniteError, match="no checkpoint was written yet"):
        toy_trainer(tmp_path, "SOLVER.LR", 1e30).train()


def test_accuracy_example():
    golden = GOLDEN["accuracy_example"]
    output, target = torch.tensor(golden["logits"]).float(), torch.tensor(golden["target"])
    top1, top5 = accuracy(output, target, topk=(1, 5))
    assert top1.shape == (1,)
    assert top1.item() == pytest.approx(golden["top1"])
    assert top5.item() == pytest.approx(golden["top5"])
    assert accuracy(torch.eye(3), torch.arange(3), topk=(5,))[0].item() == 100


def test_validate_weights_batches_by_their_size_and_restores_the_mode():
    distiller = Vanilla(ToyNet())
    data = [*batches(0, steps=1, size=6), *batches(1, steps=1, size=2)]
    top1, top5, loss = validate(data, distiller)
    assert distiller.training
    distiller.eval()
    image, target = (torch.cat([d[i] for d in data]) for i in (0, 1))
    output = distiller(image=image)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(output, target).item(), rel=1e-6)
    assert top1 == pytest.approx((output.argmax(1) == target).double().mean().item() * 100)
    assert top5 == 100


def test_steps_read_nothing_from_the_device(tmp_path):
    """Counts what would stop a GPU: a tensor's value read by the host during the steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                Reads.count += 1
            return func(*args, **(kwargs or {}))

    def reads(steps: int, trainer: str, cls: type[Distiller], amp: str) -> int:
        folder = tmp_path / f"{trainer}{steps}{amp}"
        cfg = config(folder, "SOLVER.EPOCHS", 1, "LOG.TENSORBOARD_FREQ", 1000, "SOLVER.AMP", amp)
        student, teacher = networks()
        data = loader(steps=steps)
        val = list(batches(7, steps=1))
        Reads.count = 0
        with Reads():
            trainer_dict[trainer]("run", cls(student, teacher, cfg), data, val, cfg).train()
        return Reads.count

    for amp in ("off", "bf16"):
        for trainer, cls in (("base", KD), ("crossbatch", CrossBatchKD), ("dot", KD)):
            assert reads(12, trainer, cls, amp) == reads(4, trainer, cls, amp)
