"""Trainings that are killed by SIGKILL at random moments end as if they never had been."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import build_model
from mdistiller.engine import trainer_dict

from .commands import CONTEXT, as_started_anew
from .toys import first_digits

ROOT = Path(__file__).resolve().parents[1]
KD = ("DISTILLER.TYPE", "KD")
CRD = ("CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 64)
CASES = {
    "vanilla": ("base", "NONE", ()),
    "cross-batch": (
        "crossbatch",
        "CROSSBATCH_KD",
        ("CROSSBATCH.PERIOD", 2, "CROSSBATCH.EMA", 0.9),
    ),
    "DOT": ("dot", "KD", ()),
    "CRD": ("crd", "CRD", CRD),
}
if "gradnorm" in trainer_dict:
    CASES["GradNorm"] = ("gradnorm", "KD", ())
KILLS = 20
IMAGES, VALIDATION = 400, 100
KILLS_PER_CASE = -(-KILLS // len(CASES))


def train_few(arguments: list[str], log: str) -> None:
    """What the process runs: the command line of tools/train.py, on fewer images.

    In a process group of its own, so that signals can be sent to it with its workers.
    """
    from mdistiller.commands.train import main
    from mdistiller.dataset import digits

    few = first_digits(IMAGES, VALIDATION)
    digits.read_digits = lambda: few
    os.setpgrp()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    as_started_anew()
    main(arguments)


def terminated(cfg: str, log: str) -> None:
    """A process that is told to end as soon as its training would begin.

    Here, where a forked process need not import what else test_determinism.py does.
    """
    from mdistiller.commands import train

    train.run_training = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    train_few(["--cfg", cfg], log)


class Run:
    """A training in ``prefix`` that is started again and again with the same command line."""

    def __init__(self, prefix: Path, case: str, teacher: Path) -> None:
        trainer, method, opts = CASES[case]
        self.folder = prefix / "digits" / "run"
        self.log = prefix / "log.txt"
        prefix.mkdir()
        self.command = [
            *("--cfg", str(ROOT / "configs/digits/_base.yaml"), "--resume"),
            *("LOG.PREFIX", str(prefix), "EXPERIMENT.NAME", "run", "SOLVER.TRAINER", trainer),
            *("DISTILLER.TYPE", method, "DISTILLER.STUDENT", "resnet8", "SOLVER.BATCH_SIZE", "40"),
            *("DISTILLER.TEACHER", "resnet14", "DISTILLER.TEACHER_CKPT", str(teacher)),
            *("SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]", "LOG.SAVE_EVERY_STEPS", "2"),
            *("SOLVER.DEVICE", "cpu", "DATASET.TEST.BATCH_SIZE", "256", *map(str, opts)),
        ]

    def start(self) -> multiprocessing.Process:
        process = CONTEXT.Process(target=train_few, args=(self.command, str(self.log)))
        process.start()
        return process

    def finish(self) -> float:
        """Run to the end; returns the seconds that took."""
        began = time.monotonic()
        process = self.start()
        process.join(120)
        assert process.exitcode == 0, self.log.read_text()
        return time.monotonic() - began

    def outcome(self):
        """Weights and metrics."""
        state = torch.load(self.folder / "latest", weights_only=True)
        student = torch.load(self.folder / "student_latest", weights_only=True)
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        for entry in metrics:
            del entry["seconds"], entry["images_per_second"]
        return state["model"], student["model"], metrics


def assert_same(a, b) -> None:
    for one, other in zip(a[:2], b[:2], strict=True):
        assert one.keys() == other.keys()
        assert [k for k in one if not torch.equal(one[k], other[k])] == []
    assert a[2] == b[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    server = CONTEXT.Process(target=int)  # starts the server, whose imports are no run's time
    server.start()
    server.join()
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.save({"model": build_model("digits", "resnet14", 10).state_dict()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, teacher, case):
    whole = Run(tmp_path / "whole", case, teacher)
    duration = whole.finish()
    expected = whole.outcome()
    moments = random.Random(f"{case} is killed")
    kills = lives = 0
    run = Run(tmp_path / "life0", case, teacher)
    while kills < KILLS_PER_CASE:
        process = run.start()
        time.sleep(moments.uniform(0, duration))
        if process.is_alive():
            process.kill()
            process.join()
            assert process.exitcode in (-signal.SIGKILL, 0)
            kills += process.exitcode != 0
        else:
            assert process.exitcode == 0, run.log.read_text()
            assert_same(expected, run.outcome())
            lives += 1
            run = Run(tmp_path / f"life{lives}", case, teacher)
    run.finish()
    assert_same(expected, run.outcome())
    assert "no checkpoint yet" in run.log.read_text()
    assert not list(run.folder.glob(".*.tmp"))


def test_killed_while_a_checkpoint_is_written(tmp_path, teacher):
    """Killed as soon as the temporary file is there, several times in one run."""
    whole = Run(tmp_path / "whole", "vanilla", teacher)
    whole.finish()
    run = Run(tmp_path / "part", "vanilla", teacher)
    unfinished = 0
    for _ in range(4):
        process = run.start()
        for name in (".latest.tmp", ".latest.tmp"):
            while process.is_alive() and not (run.folder / name).exists():
                pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        unfinished += (run.folder / ".latest.tmp").exists()
        if (run.folder / "latest").exists():
            torch.load(run.folder / "latest", weights_only=True)
    assert unfinished, "no kill hit a write"
    run.finish()
    assert_same(whole.outcome(), run.outcome())


def test_the_lock_of_a_killed_run_is_gone_and_that_of_a_living_one_holds(tmp_path, teacher):
    run = Run(tmp_path / "run", "vanilla", teacher)
    first = run.start()
    while first.is_alive() and not (run.folder / "latest").exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # or it might be done before the second one looks
    second = run.start()
    second.join(60)
    assert second.exitcode == 1
    assert run.log.read_text().count("error: another process is training in") == 1
    assert first.is_alive()
    first.kill()
    first.join()
    run.finish()
