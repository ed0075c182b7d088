"""Runs that were stopped within an epoch, and what may change before they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import ArrayLoader, ImageArray, Recipe
from mdistiller.distillers import CRD, KD, Vanilla, distiller_dict
from mdistiller.engine import trainer_dict
from mdistiller.engine.rundir.checkpoint import random_state, set_random_state
from mdistiller.errors import CheckpointError, ConfigError, InterruptedRun, NonFiniteError

from .toys import CLASSES, ToyNet, batches, config, mostly_slow, networks

STEPS = 5  # an epoch
SHORT = ("SOLVER.EPOCHS", 3, "LOG.TENSORBOARD_FREQ", 2)
CASES = {
    "vanilla": ("base", "NONE", ()),
    "AdamW": ("base", "KD", ("SOLVER.TYPE", "AdamW")),
    "CRD": ("crd", "CRD", ("CRD.FEAT.STUDENT_DIM", 4, "CRD.FEAT.TEACHER_DIM", 6, "CRD.NCE.K", 8)),
    "DOT": ("dot", "KD", ()),
    "cross-batch": ("crossbatch", "CROSSBATCH_KD", ("CROSSBATCH.EMA", 0.9)),
    "cross-batch, period": ("crossbatch", "CROSSBATCH_KD", ("CROSSBATCH.PERIOD", 3)),
    "cross-batch, larger auxiliary batch": (
        "crossbatch",
        "CROSSBATCH_KD",
        ("CROSSBATCH.BATCH_SIZE", 16, "CROSSBATCH.PERIOD", 2),
    ),
    "cross-batch, previous": (
        "crossbatch",
        "CROSSBATCH_KD",
        ("CROSSBATCH.REFERENCE", "previous", "CROSSBATCH.PERIOD", 2),
    ),
    "regression on held-out images": (
        "crossbatch",
        "CROSSBATCH_KD",
        (
            *("CROSSBATCH.READING", "regression", "CROSSBATCH.STEP", "plain"),
            *("CROSSBATCH.REFERENCE", "holdout", "CROSSBATCH.BATCH_SIZE", 4),
        ),
    ),
    "shared parameters": (
        "crossbatch",
        "CROSSBATCH_AT",
        (
            *("CROSSBATCH.THETA", "shared", "CROSSBATCH.REFERENCE", "previous"),
            *("CROSSBATCH.READING", "regression", "CROSSBATCH.STEP", "supervised"),
        ),
    ),
    "PCGrad": ("multitask", "KD", ("MULTITASK.METHOD", "PCGrad")),
    "GradNorm": ("gradnorm", "KD", ()),
    "uncertainty": ("uncertainty", "KD", ()),
    "gradient cosine": ("gradient_cosine", "KD", ()),
    "distill-decay": ("distill_decay", "KD", ()),
    "replay": ("replay", "KD", ("REPLAY.SHUFFLE", True)),
    "linear fade": ("linear_fade", "KD", ()),
    "confidence gate": ("confidence_gate", "KD", ()),
    "MoDo": ("two_batch", "KD", ()),
    "SDMGrad, third batch": (
        "two_batch",
        "KD",
        ("TWO_BATCH.METHOD", "SDMGrad", "TWO_BATCH.UPDATE", "third", "TWO_BATCH.BATCH_SIZE", 6),
    ),
    "FAMO": ("scalarized", "KD", ()),
    "DWA": ("scalarized", "KD", ("SCALARIZED.METHOD", "DWA")),
    "IMTL-L": ("scalarized", "KD", ("SCALARIZED.METHOD", "IMTL-L")),
    "MLKD, two views": ("base", "MLKD", ("DATASET.STRONG_VIEW", True)),
    "CTKD, cross-batch": ("crossbatch", "CROSSBATCH_CTKD", ("CTKD.REVERSAL_EPOCHS", 2)),
    "SimKD, cross-batch": ("crossbatch", "CROSSBATCH_SIMKD", ("SIMKD.CE_WEIGHT", 1.0)),
    "CAT-KD": ("base", "CATKD", ()),
}


def images(seed: int, count: int, padding: int) -> ImageArray:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return ImageArray(pixels, labels, CLASSES, padding)


def some_weights(folder: Path, epochs: int) -> Path:
    """A file with the weights of all steps of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    values = torch.rand(epochs, 2, STEPS, generator=torch.Generator().manual_seed(5)).tolist()
    lines = [{"epoch": e, "ce": ce, "kd": kd} for e, (ce, kd) in enumerate(values, 1)]
    file = folder / "weights.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def build(tmp_path, case: str, *opts, teacher_seed: int = 99):
    """A trainer of toy networks on 35 random images; the last batch of an epoch is smaller."""
    trainer, method, own = CASES[case]
    cfg = config(tmp_path, *SHORT, "SOLVER.TRAINER", trainer, "DISTILLER.TYPE", method, *own, *opts)
    if trainer == "replay" and not cfg.REPLAY.FILE:
        file = some_weights(tmp_path, cfg.SOLVER.EPOCHS)
        cfg.merge_from_list(["REPLAY.FILE", str(file)])
    student, teacher = networks()
    torch.manual_seed(teacher_seed)
    teacher = ToyNet(6).eval()
    torch.manual_seed(7)
    cls = distiller_dict[method]
    arguments = [student] if cls is Vanilla else [student, teacher, cfg]
    distiller = cls(*arguments, *([35] if issubclass(cls, CRD) else []))
    contrast = None
    if issubclass(cls, CRD):
        from mdistiller.dataset import ContrastiveSettings

        contrast = ContrastiveSettings(mode="exact", k=8)
    recipe = Recipe((0.5,) * 3, (0.25,) * 3, flip=True)
    shared = {"recipe": recipe, "device": torch.device("cpu")}
    strong = cfg.DATASET.STRONG_VIEW
    train = ArrayLoader(images(1, 35, 1), 8, train=True, contrast=contrast, strong=strong, **shared)
    train.heldout = ArrayLoader(images(3, 10, 1), 8, train=True, **shared)
    val = ArrayLoader(images(2, 12, 0), 8, train=False, **shared)
    assert len(train) == STEPS
    return trainer_dict[trainer]("run", distiller, train, val, cfg)


def stop_after(trainer, steps: int, number: int = signal.SIGTERM) -> None:
    """Send this process the signal ``number`` during the trainer's step ``steps``."""
    plain, done = trainer.step, 0

    def step(batch, epoch):
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), number)
        return plain(batch, epoch)

    trainer.step = step


def outcome(trainer):
    """Everything that must not depend on interruptions: all state, metrics, the worklog."""
    folder = trainer.log_path
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in log]
    return trainer.distiller.state_dict(), log, (folder / "worklog.txt").read_text()


def assert_same(a, b) -> None:
    assert a[0].keys() == b[0].keys()
    assert [k for k in a[0] if not torch.equal(a[0][k], b[0][k])] == []
    assert a[1:] == b[1:]


# In the first step, within an epoch, at its end, within the second one, in the very last step.
STOPS = (1, 3, STEPS, STEPS + 2, 3 * STEPS)
FEW_STOPS = {"AdamW": STOPS, "cross-batch, larger auxiliary batch": (3,), "replay": (STEPS + 2,)}
FEW_STOPS["GradNorm"] = (STEPS + 2,)


@pytest.mark.parametrize(
    ("case", "stops"),
    [
        *FEW_STOPS.items(),
        *(pytest.param(case, STOPS, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_stopped_at_any_step_it_ends_with_the_same_bits(tmp_path, case, stops):
    whole = build(tmp_path / "whole", case)
    whole.train()
    for step in stops:
        folder = tmp_path / str(step)
        part = build(folder, case)
        stop_after(part, step)
        with pytest.raises(InterruptedRun, match="terminated in epoch .* --resume") as stopped:
            part.train()
        assert stopped.value.exit_code == 143
        state = torch.load(folder / "run" / "latest", weights_only=True)
        assert (state["epoch"], state["step"]) == divmod(step - 1, STEPS)[:1] + (
            (step - 1) % STEPS + 1,
        )
        rest = build(folder, case)
        rest.train(resume=True)
        assert_same(outcome(whole), outcome(rest))


@pytest.mark.parametrize("case", mostly_slow(["cross-batch, period", "CRD"], "CRD"))
def test_stopped_after_every_single_step(tmp_path, case):
    whole = build(tmp_path / "whole", case)
    whole.train()
    for _ in range(3 * STEPS):
        part = build(tmp_path / "part", case)
        stop_after(part, 1, signal.SIGINT)
        with pytest.raises(InterruptedRun, match="interrupted in epoch") as stopped:
            part.train(resume=True)
        assert stopped.value.exit_code == 130
    rest = build(tmp_path / "part", case)
    rest.train(resume=True)
    assert_same(outcome(whole), outcome(rest))


def test_save_every_steps_keeps_a_state_within_the_epoch(tmp_path):
    class Stop(Exception):
        pass

    trainer = build(tmp_path, "cross-batch", "LOG.SAVE_EVERY_STEPS", 2)
    plain, seen = trainer.step, []

    def step(batch, epoch):
        latest = tmp_path / "run" / "latest"
        if latest.exists():
            state = torch.load(latest, weights_only=True)
            seen.append((state["epoch"], state.get("step", 0)))
        if len(seen) == 8:
            raise Stop  # as abrupt as SIGKILL: nothing is saved any more
        return plain(batch, epoch)

    trainer.step = step
    with pytest.raises(Stop):
        trainer.train()
    assert seen == [(0, 2), (0, 2), (0, 4), (1, 0), (1, 0), (1, 2), (1, 2), (1, 4)]
    rest = build(tmp_path, "cross-batch")
    rest.train(resume=True)
    whole = build(tmp_path / "whole", "cross-batch")
    whole.train()
    assert_same(outcome(whole), outcome(rest))


def test_a_signal_during_validation_keeps_the_epochs_steps(tmp_path):
    trainer = build(tmp_path / "part", "DOT")

    class Val(list):
        def __iter__(self):
            for i, data in enumerate(list.__iter__(self)):
                if i == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield data

    trainer.val_loader = Val(trainer.val_loader)
    with pytest.raises(InterruptedRun, match=f"epoch 1 after step {STEPS}"):
        trainer.train()
    rest, whole = build(tmp_path / "part", "DOT"), build(tmp_path / "whole", "DOT")
    rest.train(resume=True)
    whole.train()
    assert_same(outcome(whole), outcome(rest))


def test_second_interrupt_ends_at_once_without_saving(tmp_path):
    trainer = build(tmp_path, "vanilla")

    def step(batch, epoch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    trainer.step = step
    with pytest.raises(InterruptedRun, match="interrupted twice"):
        trainer.train()
    assert not (tmp_path / "run" / "latest").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_not_finite_never_becomes_the_checkpoint(tmp_path):
    trainer = build(tmp_path, "vanilla", "LOG.SAVE_EVERY_STEPS", 1)
    plain, steps = trainer.backward, []

    def backward(batch, epoch):
        result = plain(batch, epoch)
        steps.append(epoch)
        if len(steps) == STEPS + 3:
            result.losses["ce"] = result.losses["ce"] * float("nan")
        return result

    trainer.backward = backward
    with pytest.raises(NonFiniteError, match="epoch 2, step 3: ce"):
        trainer.train()
    state = torch.load(tmp_path / "run" / "latest", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 2)


# ---- what may change ------------------------------------------------------------------------


def stopped(tmp_path, case: str = "cross-batch") -> bytes:
    """The checkpoint of a run that was stopped in its second epoch."""
    part = build(tmp_path, case)
    stop_after(part, STEPS + 2)
    with pytest.raises(InterruptedRun):
        part.train()
    return (tmp_path / "run" / "latest").read_bytes()


CHANGED = ("SOLVER.EPOCHS", 4, "KD.TEMPERATURE", 2, "CROSSBATCH.ALPHA", 0.25)
# Said to be without effect on the numbers.
HARMLESS = (
    *("DATASET.ROOT", "elsewhere", "DATASET.NUM_WORKERS", 7, "SOLVER.DEVICE", "auto"),
    *("LOG.SAVE_CHECKPOINT_FREQ", 1, "LOG.SAVE_EVERY_STEPS", 3, "EXPERIMENT.TAG", "other"),
    *("DISTILLER.TEACHER_CKPT", "moved/student_latest", "AT.P", 3),
)


def test_changed_configuration_is_listed_and_refused_unless_told(tmp_path, capsys):
    before = stopped(tmp_path)
    differences = ("CROSSBATCH.ALPHA: 1.0 -> 0.25", "KD.TEMPERATURE: 4 -> 2", "SOLVER.EPOCHS: 3 ->")
    with pytest.raises(ConfigError, match="--allow-changes") as refused:
        build(tmp_path, "cross-batch", *CHANGED).train(resume=True)
    assert [d for d in differences if d not in str(refused.value)] == []
    assert "\n" not in str(refused.value)
    assert (tmp_path / "run" / "latest").read_bytes() == before
    capsys.readouterr()
    result = build(tmp_path, "cross-batch", *CHANGED).train(resume=True, allow_changes=True)
    assert result["epochs"] == 4
    printed = capsys.readouterr().out
    assert [d for d in differences if d not in printed] == []
    # From now on the new configuration is the run's.
    build(tmp_path, "cross-batch", *CHANGED).train(resume=True)


def test_where_things_lie_may_change(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stopped(tmp_path)
    rest, whole = build(tmp_path, "cross-batch", *HARMLESS), build(tmp_path / "w", "cross-batch")
    rest.train(resume=True)
    whole.train()
    assert_same(outcome(whole), outcome(rest))


@pytest.mark.parametrize(
    ("case", "change", "group"),
    [
        ("vanilla", ("SOLVER.MOMENTUM", 0.5), {"momentum": 0.5}),
        ("vanilla", ("SOLVER.WEIGHT_DECAY", 0.1), {"weight_decay": 0.1}),
        ("vanilla", ("SOLVER.NESTEROV", True), {"nesterov": True}),
        ("DOT", ("SOLVER.DOT.DELTA", 0.05), {"momentum": 0.85, "momentum_kd": 0.95}),
        ("uncertainty", ("UNCERTAINTY.LR", 0.5), {"lr_scale": 10.0}),
    ],
)
def test_changed_optimizer_settings_are_trained_with(tmp_path, case, change, group):
    stopped(tmp_path, case)
    shutil.copytree(tmp_path, tmp_path / "same")
    changed, same = build(tmp_path, case, *change), build(tmp_path / "same", case)
    changed.train(resume=True, allow_changes=True)
    same.train(resume=True)
    state = torch.load(tmp_path / "run" / "latest", weights_only=True)["optimizer"]
    found = state["param_groups"][-1]
    assert {key: found[key] for key in group} == pytest.approx(group)
    a, b = outcome(changed)[0], outcome(same)[0]
    assert not all(torch.equal(a[key], b[key]) for key in a)


def test_another_optimizer_begins_anew(tmp_path, capsys):
    stopped(tmp_path, "vanilla")
    build(tmp_path, "vanilla", "SOLVER.TYPE", "AdamW").train(resume=True, allow_changes=True)
    assert "moving averages begin anew" in capsys.readouterr().out


def test_batches_of_another_size_wait_for_the_end_of_the_epoch(tmp_path):
    """Within an epoch they would leave images out or repeat them."""
    before = stopped(tmp_path, "vanilla")
    for change in (("SOLVER.BATCH_SIZE", 16), ("EXPERIMENT.SEED", 1), ("DATASET.SUBSET", 7)):
        with pytest.raises(ConfigError, match=f"after step 2 of epoch 2.*{change[0]}") as refused:
            build(tmp_path, "vanilla", *change).train(resume=True, allow_changes=True)
        assert "\n" not in str(refused.value)
    assert (tmp_path / "run" / "latest").read_bytes() == before
    build(tmp_path / "whole", "vanilla", "SOLVER.EPOCHS", 1).train()
    rest = build(tmp_path / "whole", "vanilla", "SOLVER.BATCH_SIZE", 16)
    assert rest.train(resume=True, allow_changes=True)["epochs"] == 3


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_other_signals_that_end_a_run_save_its_step(tmp_path, name, request):
    number = getattr(signal, name)
    # Tests under nohup ignore SIGHUP, and a run leaves what is ignored alone.
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))
    part = build(tmp_path, "vanilla")
    stop_after(part, 3, number)
    with pytest.raises(InterruptedRun, match=f"{name} in epoch 1 after step 3") as ended:
        part.train()
    assert ended.value.exit_code == 128 + number
    assert torch.load(tmp_path / "run" / "latest", weights_only=True)["step"] == 3
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_or_anothers_stays_so(tmp_path):
    """nohup ignores SIGHUP; a launcher may have a use of its own for SIGUSR1."""
    seen = []
    for number, handler in (
        (signal.SIGHUP, signal.SIG_IGN),
        (signal.SIGUSR1, lambda *_: seen.append(1)),
    ):
        before = signal.signal(number, handler)
        try:
            trainer = build(tmp_path / str(number), "vanilla")
            stop_after(trainer, 3, number)
            assert trainer.train()["epochs"] == 3
        finally:
            signal.signal(number, before)
    assert seen == [1]


def test_random_states_of_more_gpus_than_there_are(monkeypatch):
    """A checkpoint of a machine with four GPUs, continued where there is one."""
    cpu, one, set_to = torch.device("cpu"), torch.device("cuda"), []
    state = random_state(cpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: set_to.append((s, device)))
    four = [torch.full((2,), n, dtype=torch.uint8) for n in range(4)]
    set_random_state({**state, "cuda": four}, one)
    set_random_state({**state, "cuda": four[:1]}, torch.device("cuda:3"))
    set_random_state(state, one)
    set_random_state({**state, "cuda": four}, cpu)
    assert [(int(s[0]), d) for s, d in set_to] == [(0, one), (0, torch.device("cuda:3"))]


def test_another_teacher_is_refused_even_if_its_file_has_the_same_name(tmp_path):
    before = stopped(tmp_path)
    for allow in (False, True):
        other = build(tmp_path, "cross-batch", teacher_seed=98)
        with pytest.raises(CheckpointError, match="another teacher .*SHA-256.*TEACHER_CKPT") as e:
            other.train(resume=True, allow_changes=allow)
        assert "\n" not in str(e.value)
    assert (tmp_path / "run" / "latest").read_bytes() == before


def test_teachers_weights_are_in_the_model_state_only_once(tmp_path):
    stopped(tmp_path)
    state = torch.load(tmp_path / "run" / "latest", weights_only=True)
    assert state["teacher"].keys() == {"name", "path", "sha256"}
    assert len(state["teacher"]["sha256"]) == 64
    assert any(key.startswith("module.teacher.") for key in state["model"])


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    trainer = build(tmp_path, "vanilla")
    first = trainer.train()
    before = outcome(trainer)
    again = build(tmp_path, "vanilla")
    second = again.train(resume=True)
    assert_same(before, outcome(again))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_lists_of_batches_resume_too(tmp_path):
    """A loader that is a plain list has no ``iterate``."""

    def trainer(folder):
        cfg = config(folder)
        student, teacher = networks()
        data = list(batches(0))
        return trainer_dict["base"]("run", KD(student, teacher, cfg), data, data, cfg)

    whole, part = trainer(tmp_path / "whole"), trainer(tmp_path / "part")
    whole.train()
    stop_after(part, 6)
    with pytest.raises(InterruptedRun):
        part.train()
    rest = trainer(tmp_path / "part")
    assert len(list(islice(rest.batches(2, 2), 9))) == 2
    rest.train(resume=True)
    assert_same(outcome(whole), outcome(rest))
