"""Trainings that share batches and teacher end with the bits of trainings alone."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import time
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import model_dict_for
from mdistiller.distillers import KD, distiller_dict
from mdistiller.engine import BaseTrainer
from mdistiller.engine.cfg import experiment_name, load_cfg
from mdistiller.engine.run import run_training
from mdistiller.engine.rundir.checkpoint import Checkpoints
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.engine.rundir.records import RunRecord
from mdistiller.engine.runtime.precision import FrozenTeacher
from mdistiller.errors import ConfigError, InterruptedRun, MdistillerError, NonFiniteError
from mdistiller.experiments.fleet.clock import MemberClock, SharedTime
from mdistiller.experiments.fleet.fleet import Fleet, Member
from mdistiller.experiments.fleet.sharing import SharedStream

from .toys import SmallNet, few_digits

ROOT = Path(__file__).resolve().parents[1]
IMAGES, VALIDATION, BATCH = 60, 20, 16
STUDENT, TEACHER = "test_student", "test_teacher"
STEPS = 3  # an epoch; its last batch is smaller

CROSS = ("SOLVER.TRAINER", "crossbatch")
OFD = ("DISTILLER.TYPE", "OFD", "OFD.TEACHER_TRAIN_MODE")
FITNET = ("DISTILLER.TYPE", "FITNET")
CASES = {
    "KD": (),
    "RKD": ("DISTILLER.TYPE", "RKD"),
    "AT": ("DISTILLER.TYPE", "AT"),
    "PKT": ("DISTILLER.TYPE", "PKT"),
    "KDSVD": ("DISTILLER.TYPE", "KDSVD"),
    "FITNET": FITNET,
    "VID": ("DISTILLER.TYPE", "VID"),
    "REVIEWKD": ("DISTILLER.TYPE", "REVIEWKD"),
    "OFD": (*OFD, "False"),
    "OFD, teacher in train mode": (*OFD, "True"),
    "cross-batch KD": ("DISTILLER.TYPE", "CROSSBATCH_KD", *CROSS),
    "cross-batch AT": ("DISTILLER.TYPE", "CROSSBATCH_AT", *CROSS, "CROSSBATCH.EMA", "0.9"),
    "cross-batch RKD, period": ("DISTILLER.TYPE", "CROSSBATCH_RKD", *CROSS, "CROSSBATCH.PERIOD", 2),
    "cross-batch, smaller second batch": (
        *("DISTILLER.TYPE", "CROSSBATCH_KD", *CROSS, "CROSSBATCH.BATCH_SIZE", "8"),
    ),
    "PCGrad": ("SOLVER.TRAINER", "multitask", "MULTITASK.METHOD", "PCGrad"),
    "GradNorm": ("SOLVER.TRAINER", "gradnorm"),
    "distill-decay": ("SOLVER.TRAINER", "distill_decay"),
    "DOT": ("SOLVER.TRAINER", "dot"),
    "confidence gate": ("SOLVER.TRAINER", "confidence_gate"),
    "MoDo": ("SOLVER.TRAINER", "two_batch"),
    "SDMGrad, third batch": (
        *("SOLVER.TRAINER", "two_batch", "TWO_BATCH.METHOD", "SDMGrad"),
        *("TWO_BATCH.UPDATE", "third"),
    ),
    "FAMO": ("SOLVER.TRAINER", "scalarized"),
    "SimKD": ("DISTILLER.TYPE", "SIMKD"),
    "CAT-KD": ("DISTILLER.TYPE", "CATKD"),
    "cross-batch CTKD": ("DISTILLER.TYPE", "CROSSBATCH_CTKD", *CROSS),
    "DKD, standardised": ("DISTILLER.TYPE", "DKD", "DISTILLER.LOGIT_STANDARDIZATION", True),
    "dropout": ("DISTILLER.TYPE", "TEST_DROPOUT"),
    "one epoch more": ("SOLVER.EPOCHS", 3),
}


class Dropout(KD):
    """Draws from all three global generators at every step."""

    def forward_train(self, image, target, **kwargs):
        import random

        import numpy as np

        logits, losses = super().forward_train(image, target, **kwargs)
        factor = torch.rand(()) + random.random() + np.random.random()
        return logits, {**losses, "loss_kd": losses["loss_kd"] * factor}


class Rude(KD):
    """Changes what it was given: the images, and the teacher's logits and features."""

    def forward_train(self, image, target, **kwargs):
        image.mul_(0.5)
        logits, features = self.forward_teacher(image)
        logits.mul_(0.5)
        features["feats"].pop().zero_()
        features["own"] = logits
        return super().forward_train(image, target, **kwargs)


def _network(width: int, num_classes: int) -> SmallNet:
    return SmallNet(width)


@pytest.fixture(autouse=True, scope="module")
def small_world():
    """Few digits, two distillers and two small networks more."""
    with pytest.MonkeyPatch.context() as patch, few_digits(IMAGES - VALIDATION, VALIDATION):
        patch.setitem(distiller_dict, "TEST_DROPOUT", Dropout)
        patch.setitem(distiller_dict, "TEST_RUDE", Rude)
        networks = model_dict_for("digits")
        for name, width in ((STUDENT, 8), (TEACHER, 12)):
            patch.setitem(networks, name, (partial(_network, width), None))
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """It need not know anything."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "weights"
    torch.save({"model": SmallNet(12).state_dict()}, path)
    return path


def options(prefix: Path, teacher: Path, name: str, *opts: object) -> tuple[str, ...]:
    return (
        *("LOG.PREFIX", str(prefix), "EXPERIMENT.PROJECT", "p", "SOLVER.BATCH_SIZE", str(BATCH)),
        *("DISTILLER.STUDENT", STUDENT, "DISTILLER.TEACHER", TEACHER, "SOLVER.EPOCHS", "2"),
        *("DISTILLER.TEACHER_CKPT", str(teacher), "SOLVER.LR_DECAY_STAGES", "[1]"),
        *("SOLVER.DEVICE", "cpu", "LOG.TENSORBOARD_FREQ", "2", *map(str, opts)),
        *("EXPERIMENT.NAME", name.replace(", ", "-")),
    )


def member(prefix: Path, teacher: Path, name: str, *opts: object, resume=False) -> Member:
    opts = options(prefix, teacher, name, *CASES.get(name, ()), *opts)
    return Member(load_cfg(ROOT / "configs/digits/kd.yaml", opts), resume, io.StringIO())


def alone(one: Member) -> None:
    """Train a member by itself."""
    run_training(one.cfg, one.resume)


def folder(one: Member) -> Path:
    return Path(one.cfg.LOG.PREFIX) / experiment_name(one.cfg)


def without_times(value):
    """A checkpoint or an entry of metrics.jsonl without what tells how long it took."""
    if not isinstance(value, dict):
        return value
    gone = ("seconds", "images_per_second", "fleet")
    return {k: without_times(v) for k, v in value.items() if k not in gone}


def flat(value, name="") -> dict:
    """Nested dicts, lists and tuples as one dict."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    else:
        return {name: value}
    return {k: v for key, part in parts for k, v in flat(part, f"{name}/{key}").items()}


def outcome(one: Member) -> dict:
    """Everything that a run leaves, but for times and where it lies."""
    place = folder(one)
    lines = (place / "metrics.jsonl").read_text().splitlines()
    files = {"metrics": [json.loads(line) for line in lines]}
    files["worklog"] = (place / "worklog.txt").read_text()
    for name in ("latest", "best", "student_latest", "student_best"):
        files[name] = torch.load(place / name, weights_only=True)
    files["result"] = json.loads((place / "result.json").read_text())
    return flat(
        {
            k: [without_times(x) for x in v] if k == "metrics" else without_times(v)
            for k, v in files.items()
        }
    )


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    unlike = [
        key
        for key, value in found.items()
        if not (
            torch.equal(value, expected[key])
            if isinstance(value, torch.Tensor)
            else value == expected[key]
        )
    ]
    assert unlike == []


@pytest.fixture(scope="module")
def solo(tmp_path_factory, teacher):
    """What each case leaves if it is trained alone, each trained once."""
    prefix, known = tmp_path_factory.mktemp("solo"), {}

    def of(name: str, *opts: object) -> dict:
        if (name, opts) not in known:
            one = member(prefix / str(len(known)), teacher, name, *opts)
            alone(one)
            known[name, opts] = outcome(one)
        return known[name, opts]

    return of


FEW = ("KD", "OFD", "cross-batch RKD, period", "GradNorm", "dropout", "one epoch more")


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_all_at_once_have_the_bits_of_each_alone(tmp_path, teacher, solo, names):
    members = [member(tmp_path, teacher, name) for name in names]
    Fleet(members).train()
    for name, one in zip(names, members, strict=True):
        assert one.error is None, one.out.getvalue()
        assert one.result["fleet"] == len(names)
        assert_same(outcome(one), solo(name))
        assert "epoch 2/" in one.out.getvalue()


def test_a_reference_from_held_out_images_has_the_bits_of_alone(tmp_path, teacher, solo):
    held = ("DATASET.HOLDOUT", 20, "DATASET.VALIDATE", "test")
    cross = ("DISTILLER.TYPE", "CROSSBATCH_KD", *CROSS, "CROSSBATCH.REFERENCE", "holdout")
    regression = ("CROSSBATCH.READING", "regression", "CROSSBATCH.STEP", "plain")
    each = [held, (*held, *cross, *regression), (*held, *cross, "CROSSBATCH.PERIOD", 2)]
    members = [member(tmp_path, teacher, f"held{i}", *opts) for i, opts in enumerate(each)]
    for one, opts, i in zip(trained(members), each, range(3), strict=True):
        assert_same(outcome(one), solo(f"held{i}", *opts))


def trained(members: list[Member]) -> list[Member]:
    Fleet(members).train()
    for one in members:
        assert one.error is None, one.out.getvalue()
    return members


def test_each_batch_and_each_answer_of_the_teacher_is_made_once(tmp_path, teacher, monkeypatch):
    made = Counter()

    def counting(cls, name):
        plain = getattr(cls, name)

        def call(self, *arguments):
            made[cls.__name__] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(cls, name, call)

    counting(FrozenTeacher, "__call__")
    counting(SharedStream, "_read")
    names = ("KD", "AT", "OFD", "cross-batch KD", "cross-batch AT", "cross-batch RKD, period")
    trained([member(tmp_path, teacher, name) for name in names])
    steps = 2 * STEPS
    # The second batches of every step, and of every other step.
    assert made == {"FrozenTeacher": steps, "SharedStream": steps + steps + steps // 2}


def test_who_changes_a_shared_tensor_changes_nothing_for_the_others(tmp_path, teacher, solo):
    """Solo, the rude one sees its own teacher's tensors, which nobody else has."""
    rude = ("DISTILLER.TYPE", "TEST_RUDE")
    given = {"KD": (), "rude": rude, "AT": (), "rude too": rude}
    members = trained([member(tmp_path, teacher, name, *opts) for name, opts in given.items()])
    for one, (name, opts) in zip(members, given.items(), strict=True):
        assert_same(outcome(one), solo(name, *opts))


def stop_in_step(monkeypatch, steps: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the ``steps``-th step of any training from here on."""
    plain, done = BaseTrainer.step, Counter()

    def step(self, batch, epoch):
        done["steps"] += 1
        if done["steps"] == steps:
            os.kill(os.getpid(), number)
        return plain(self, batch, epoch)

    monkeypatch.setattr(BaseTrainer, "step", step)


NAMES = ("KD", "cross-batch KD", "dropout", "GradNorm", "OFD, teacher in train mode")


@pytest.mark.parametrize(
    ("step", "number", "code", "done"),
    # Who is asked in its pause stops there, but for one in front of an epoch: that takes a step.
    [(7, signal.SIGTERM, 143, {1, 2}), (18, signal.SIGINT, 130, {4})],
)
def test_stopped_fleets_go_on_and_runs_move_in_and_out(
    tmp_path, teacher, solo, monkeypatch, step, number, code, done
):
    members = [member(tmp_path, teacher, name) for name in NAMES]
    with monkeypatch.context() as patch:
        stop_in_step(patch, step, number)
        with pytest.raises(InterruptedRun, match="5 of 5 trainings are saved") as caught:
            Fleet(members).train()
    assert caught.value.exit_code == code
    places = [torch.load(folder(one) / "latest", weights_only=True) for one in members]
    assert {STEPS * x["epoch"] + x.get("step", 0) for x in places} == done

    again = [member(tmp_path, teacher, name, resume=True) for name in NAMES]
    alone(again[1])
    # One that is done, four in the middle, one that has not begun.
    again.append(member(tmp_path, teacher, "AT", resume=True))
    trained(again)
    for name, one in zip((*NAMES, "AT"), again, strict=True):
        assert_same(outcome(one), solo(name))


def test_runs_that_were_stopped_alone_at_different_steps_fall_into_step(
    tmp_path, teacher, solo, monkeypatch
):
    names = {"KD": 2, "cross-batch KD": 5, "AT": 4, "dropout": 0, "PKT": 4}
    for name, step in names.items():
        with monkeypatch.context() as patch:
            stop_in_step(patch, step)
            if step:
                with pytest.raises(InterruptedRun):
                    alone(member(tmp_path, teacher, name))
    calls = []
    with monkeypatch.context() as patch:
        plain = FrozenTeacher.__call__
        patch.setattr(FrozenTeacher, "__call__", lambda *a: calls.append(1) or plain(*a))
        members = trained([member(tmp_path, teacher, n, resume=True) for n in names])
    for name, one in zip(names, members, strict=True):
        assert_same(outcome(one), solo(name))
    # No batch's answer is computed twice, although they began at steps 2, 5, 4, 0 and 4.
    assert len(calls) == 2 * STEPS


def test_a_second_ctrl_c_ends_all_at_once(tmp_path, teacher, monkeypatch):
    members = [member(tmp_path, teacher, name) for name in ("KD", "AT")]
    stop_in_step(monkeypatch, 3, signal.SIGINT)
    plain = Checkpoints.save_step

    def save_step(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save_step", save_step)
    with pytest.raises(InterruptedRun, match="stopped by a signal") as caught:
        Fleet(members).train()
    assert caught.value.exit_code == 130
    assert not (folder(members[0]) / "latest").exists()
    assert not any(is_locked(folder(one) / ".lock") for one in members)


def test_a_signal_after_everything_was_written_is_no_interruption(tmp_path, teacher, monkeypatch):
    one, plain = member(tmp_path, teacher, "KD"), RunRecord.finish

    def finish(self, result):
        os.kill(os.getpid(), signal.SIGTERM)
        plain(self, result)

    monkeypatch.setattr(RunRecord, "finish", finish)
    assert trained([one])[0].result["epochs"] == 2


def test_a_member_that_is_done_is_freed_while_others_train(tmp_path, teacher, monkeypatch):
    """The first one, whose teacher and way to load batches all use, has fewer epochs."""
    first, other = (member(tmp_path, teacher, n) for n in ("KD", "one epoch more"))
    students, alive, plain = {}, [], BaseTrainer.step

    def step(self, batch, epoch):
        if epoch == 1:
            students[self.experiment_name] = weakref.ref(self.distiller.student)
        if epoch == 3:
            gc.collect()
            alive.append(sum(student() is not None for student in students.values()))
        return plain(self, batch, epoch)

    monkeypatch.setattr(BaseTrainer, "step", step)
    trained([first, other])
    assert alive == [1] * STEPS


def test_members_that_fail_leave_the_others_alone(tmp_path, teacher, solo, monkeypatch):
    broken = {
        "too fast": ("SOLVER.LR", "1e30"),
        "no such layer": ("DISTILLER.TYPE", "FITNET", "FITNET.HINT_LAYER", "9"),
        "a mistake": ("DISTILLER.TYPE", "TEST_RUDE"),
    }
    monkeypatch.setattr(Rude, "forward_train", lambda self, **batch: batch["nothing"])
    members = [member(tmp_path, teacher, name, *opts) for name, opts in broken.items()]
    sound = [member(tmp_path, teacher, name) for name in ("KD", "AT")]
    twice = member(tmp_path, teacher, "KD")
    Fleet([*members[:1], *sound, twice, *members[1:]]).train()
    kinds = [type(one.error) for one in (*members, twice)]
    assert kinds[0] is NonFiniteError
    assert issubclass(kinds[1], ConfigError)
    assert kinds[2:] == [KeyError, MdistillerError]
    for one in (*members[:2], twice):
        assert f"error: {one.error}\n" in one.out.getvalue()
    assert "KeyError: 'nothing'" in members[2].out.getvalue()
    assert "another process is training in" in twice.out.getvalue()
    for name, one in zip(("KD", "AT"), sound, strict=True):
        assert_same(outcome(one), solo(name))


@pytest.mark.parametrize(
    ("opts", "key"),
    [
        (("SOLVER.BATCH_SIZE", "8"), "SOLVER.BATCH_SIZE is 16 in p/KD and 8 in p/other"),
        (("EXPERIMENT.SEED", "3"), "EXPERIMENT.SEED"),
        (("DISTILLER.TEACHER", "resnet20"), "DISTILLER.TEACHER"),
        (("DISTILLER.TYPE", "NONE"), "DISTILLER.TEACHER is 'test_teacher' in p/KD and None"),
        (("DISTILLER.TYPE", "CRD"), "CRD.MODE"),
        (("SOLVER.AMP", "bf16"), "SOLVER.AMP"),
        (("DATASET.TEST.BATCH_SIZE", "7"), "DATASET.TEST.BATCH_SIZE"),
    ],
)
def test_members_that_cannot_share_are_refused(tmp_path, teacher, opts, key):
    members = [member(tmp_path, teacher, "KD"), member(tmp_path, teacher, "other", *opts)]
    with pytest.raises(ConfigError, match="must agree on") as caught:
        Fleet(members)
    assert key in str(caught.value)
    assert "train them separately" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["CRD", "no teacher", "bf16"])
def test_fleets_of_other_kinds(tmp_path, teacher, solo, kind):
    crd = ("CRD.FEAT.STUDENT_DIM", 8, "CRD.FEAT.TEACHER_DIM", 12, "CRD.NCE.K", 8)
    bf16 = ("SOLVER.AMP", "bf16")
    given = {
        "CRD": {
            "a": ("DISTILLER.TYPE", "CRD", *crd),
            "b": ("DISTILLER.TYPE", "CROSSBATCH_CRD", *CROSS, *crd),
        },
        "no teacher": {
            "a": ("DISTILLER.TYPE", "NONE"),
            "b": ("DISTILLER.TYPE", "NONE", "SOLVER.LR", 0.01),
        },
        "bf16": {"KD": bf16, "AT": bf16, "cross-batch AT": bf16},
    }[kind]
    members = trained([member(tmp_path, teacher, name, *opts) for name, opts in given.items()])
    for one, (name, opts) in zip(members, given.items(), strict=True):
        assert_same(outcome(one), solo(name, *opts))


def test_time_is_divided_without_a_rest(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shares = SharedTime()
    one, other, late = (MemberClock() for _ in range(3))
    shares.begin_round([one, other])
    with shares.turn(one):
        now += 1
        with shares.shared():
            now += 10
            assert late() == 0
        now += 2
        assert one() == 8
    now += 100  # between two turns
    with shares.turn(other):
        now += 4
    shares.begin_round([late])
    with shares.turn(late), shares.shared():
        now += 5
    assert (one(), other(), late()) == (8, 9, 5)


def test_seconds_are_marked_and_no_more_than_the_walls(tmp_path, teacher):
    began = time.monotonic()
    members = trained([member(tmp_path, teacher, name) for name in ("KD", "AT", "cross-batch KD")])
    assert 0 < sum(one.result["seconds"] for one in members) <= time.monotonic() - began
    for one in members:
        lines = (folder(one) / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert [e["fleet"] for e in entries] == [3, 3]
        assert 0 < sum(e["seconds"] for e in entries) <= one.result["seconds"]
