"""What must hold on a GPU as on a CPU; MDISTILLER_TEST_DEVICE says where (make gpu-check: cuda)."""

from __future__ import annotations

import io
import os
import shutil

import pytest
import torch
from torch.utils._pytree import tree_map_only

from mdistiller.engine.caching.answers import source_of
from mdistiller.engine.caching.file import open_or_create
from mdistiller.engine.cfg import CROSSBATCH_PREFIX, load_cfg
from mdistiller.engine.run import build_trainer, run_training
from mdistiller.engine.runtime.determinism import use_deterministic_algorithms
from mdistiller.engine.runtime.precision import has_native_bf16
from mdistiller.errors import InterruptedRun
from mdistiller.experiments.fleet.fleet import Fleet, Member

from . import test_losses
from .test_every_method import METHODS
from .test_resume import stop_after
from .toys import few_digits

DEVICE = os.environ.get("MDISTILLER_TEST_DEVICE", "cpu")
CFG = "configs/digits/demo/kd.yaml"
CROSS = ("SOLVER.TRAINER", "crossbatch")


@pytest.fixture(autouse=True, scope="module")
def small_world():
    """Few digits; deterministic algorithms, as --deterministic asks for."""
    with few_digits(20, 8):
        use_deterministic_algorithms()
        yield
        torch.use_deterministic_algorithms(False)


def config(folder, name, *opts):
    return load_cfg(
        CFG,
        [
            *("LOG.PREFIX", str(folder), "EXPERIMENT.NAME", name, "SOLVER.BATCH_SIZE", "8"),
            *("SOLVER.DEVICE", DEVICE, "DISTILLER.TEACHER_FAULT", "random", "SOLVER.EPOCHS", "2"),
            *("SOLVER.LR_DECAY_STAGES", "[]", "SOLVER.DETERMINISTIC", "True", *map(str, opts)),
        ],
    )


def student(trainer):
    return [value.cpu() for value in trainer.distiller.student.state_dict().values()]


def equal(a, b) -> bool:
    return all(map(torch.equal, a, b))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A cross-batch run without an interruption, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    trainer = build_trainer(config(folder, "a", *CROSS))
    trainer.train()
    run_training(config(folder, "b"))
    return folder, student(trainer)


def test_a_resumed_run_has_the_same_bits(alone, tmp_path):
    stopped = build_trainer(config(tmp_path, "a", *CROSS))
    stop_after(stopped, 4)
    with pytest.raises(InterruptedRun):
        stopped.train()
    again = build_trainer(config(tmp_path, "a", *CROSS))
    again.train(resume=True)
    assert equal(student(again), alone[1])


def test_runs_in_a_fleet_have_the_same_bits(alone, tmp_path):
    cfgs = [config(tmp_path, "a", *CROSS), config(tmp_path, "b")]
    members = [Member(cfg, out=io.StringIO()) for cfg in cfgs]
    Fleet(members).train()
    assert not any(member.error for member in members)
    files = [folder.rglob("student_latest") for folder in (alone[0], tmp_path)]
    for pair in zip(*map(sorted, files), strict=True):
        a, b = (torch.load(f, map_location="cpu")["model"].values() for f in pair)
        assert equal(a, b)


def test_bf16_goes_nearly_the_same_way(alone, tmp_path):
    if DEVICE == "cpu" and not has_native_bf16(torch.device("cpu")):
        pytest.skip("this CPU emulates bf16")
    trainer = build_trainer(config(tmp_path, "a", *CROSS, "SOLVER.AMP", "bf16"))
    before = student(trainer)
    trainer.train()
    flat = [
        torch.cat([v.flatten().float() for v in x]) for x in (before, student(trainer), alone[1])
    ]
    way = (flat[2] - flat[0]).norm()
    assert 0 < (flat[1] - flat[2]).norm() < 0.5 * way


def to_device(tree):
    return tree_map_only(torch.Tensor, lambda t: t.detach().to(DEVICE), tree)


def test_losses_are_the_golden_ones():
    which = "f32"
    for case, entry in test_losses.CASES.items():
        inputs = test_losses.make_inputs(case, test_losses.DTYPES[which])
        if "function" in entry:
            losses = test_losses.call_function(case, to_device(inputs))
        else:
            distiller = test_losses.make_distiller(case, inputs, test_losses.DTYPES[which])
            for network in (distiller.student, distiller.teacher):
                network.logits, network.features = to_device((network.logits, network.features))
            arguments = to_device(test_losses.step_arguments(case, inputs))
            _, losses = distiller.to(DEVICE)(**arguments)
        # Other kernels than those of the recording round in their own way.
        rtol = max(entry["fair_rtol"][which], 1e-4)
        for key, expected in entry[f"values_{which}"].items():
            assert losses[key].item() == pytest.approx(expected, rel=rtol), (case, key)


def test_a_step_reads_nothing_from_the_device(tmp_path):
    cache = tmp_path / "answers"
    few = ("DATASET.SUBSET", 8, "SOLVER.BATCH_SIZE", 4)
    source = source_of(config(tmp_path, "source", *few))
    file = open_or_create(cache, source.header)
    source.fill(file)
    file.close()
    ways = {
        "vanilla": (),
        "cross-batch": CROSS,
        "cross-batch, cached": (*CROSS, "DISTILLER.TEACHER_CACHE", cache),
        "DOT": ("SOLVER.TRAINER", "dot"),
        "PCGrad": ("SOLVER.TRAINER", "multitask", "MULTITASK.METHOD", "PCGrad"),
        "two views": ("DISTILLER.TYPE", "MLKD", "DATASET.STRONG_VIEW", True),
        "bf16": (*CROSS, "SOLVER.AMP", "bf16"),
    }
    if DEVICE == "cpu":
        del ways["bf16"]
    for name, opts in ways.items():
        cfg = config(tmp_path, name.replace(", ", "-"), *few, *opts)
        start, end = take_steps(cfg, may_wait=name == "PCGrad")  # torchjd solves it on the CPU
        assert all(torch.isfinite(v).all() for v in end), name
        assert not equal(start, end), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_all_it_needs_on_the_device(tmp_path, name):
    """Plain and weighted, also where only deterministic algorithms will do."""
    small = ("DATASET.SUBSET", 8, "SOLVER.BATCH_SIZE", 4, "SIMKD.CE_WEIGHT", 1.0)
    networks = ("DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8")
    networks += ("CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 4)
    plain = "crd" if name == "CRD" else "base"
    for kind, trainer in ((name, plain), (f"{CROSSBATCH_PREFIX}{name}", "crossbatch")):
        opts = (*small, *networks, "DISTILLER.TYPE", kind, "SOLVER.TRAINER", trainer)
        # torch's eigh reads from the device whether it has converged.
        start, end = take_steps(config(tmp_path, kind, *opts), may_wait=name == "KDSVD")
        assert all(torch.isfinite(v).all() for v in end), kind
        assert not equal(start, end), kind


def take_steps(cfg, may_wait: bool):
    """The student before and after two steps of a new run, the second of which torch refuses on
    CUDA where it waits for the device.
    """
    trainer = build_trainer(cfg)
    start = [value.clone() for value in student(trainer)]
    trainer.distiller.train()
    batches = iter(trainer.batches(1))
    trainer.step(next(batches), 1)  # what is set up once may wait
    try:
        if DEVICE.startswith("cuda") and not may_wait:
            torch.cuda.set_sync_debug_mode("error")
        # An epoch's order is moved at its beginning; within it nothing is waited for.
        trainer.step(next(batches), 1)
    finally:
        if DEVICE.startswith("cuda"):
            torch.cuda.set_sync_debug_mode("default")
    shutil.rmtree(trainer.log_path, ignore_errors=True)
    return start, student(trainer)
