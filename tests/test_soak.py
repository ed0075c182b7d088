"""The soak test finds what it is there to find, and nothing in a sound training."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.soak import MIB, judge, main
from mdistiller.engine.trainers.crossbatch import CrossBatchTrainer

OPTS = (
    *("SOLVER.BATCH_SIZE", "4", "DISTILLER.TEACHER", "convnet12", "SOLVER.DEVICE", "cpu"),
    *("DISTILLER.STUDENT", "convnet12", "DISTILLER.TEACHER_CKPT", "no/such"),
    *("LOG.SAVE_CHECKPOINT_FREQ", "1"),
)


def samples(count=100, leak=0.0, handles=0.0, threads=0.0, slower=0.0, seed=0):
    """A run with noise, and growth of the given amounts from its begin to its end."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        t = i / (count - 1)
        yield {
            "step": 20 * (i + 1),
            "rss": int(MIB * (500 + 100 * (t > 0.05) + leak * t + rng.normal())),
            "handles": int(20 + handles * t),
            "threads": int(8 + threads * t),
            "work_ms": (100 + rng.normal() * 5) * (1 + slower * t),
            "step_ms": 100 + 300 * t,  # another program took the processor
        }


@given(seed=st.integers(0, 1000), count=st.integers(20, 300))
def test_noise_and_a_warm_up_are_sound(seed, count):
    found, wrong = judge(list(samples(count, seed=seed)), 16, 1.5)
    assert wrong == []
    assert abs(found["memory_growth_mib"]) < 4
    assert found["slowdown"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("growth", "words"),
    [
        ({"leak": 30}, "memory grew by 2"),
        ({"handles": 10}, "file handles grew by"),
        ({"threads": 10}, "threads grew by"),
        ({"slower": 1.0}, "steps became 1."),
    ],
)
def test_growth_is_found(growth, words):
    _, wrong = judge(list(samples(**growth)), 16, 1.5)
    assert len(wrong) == 1
    assert wrong[0].startswith(words)


def test_one_jump_of_the_memory_is_no_leak():
    run = list(samples())
    run[60]["rss"] += 500 * MIB
    assert judge(run, 16, 1.5)[1] == []


def soak(tmp_path, *arguments) -> None:
    main(["--out", str(tmp_path / "new" / "soak.jsonl"), *arguments, *OPTS])


def test_a_training_is_measured(tmp_path, capsys):
    soak(tmp_path, "--steps", "60", "--every", "2", "--slowdown", "20", "--memory", "500")
    printed = capsys.readouterr().out
    assert "no growth, no slowing down" in printed
    lines = (tmp_path / "new" / "soak.jsonl").read_text().splitlines()
    *taken, verdict = map(json.loads, lines)
    assert [s["step"] for s in taken] == list(range(2, 61, 2))
    assert all(s["rss"] > 50 * MIB and s["handles"] > 2 and s["threads"] >= 1 for s in taken)
    assert all(0 < s["work_ms"] < 60e3 and 0 < s["step_ms"] < 60e3 for s in taken)
    assert verdict["wrong"] == []


def test_a_leak_of_file_handles_ends_with_status_1(tmp_path, capsys, monkeypatch):
    step, leaked = CrossBatchTrainer.step, []

    def leaky(self, batch, epoch):
        leaked.append(os.open(os.devnull, os.O_RDONLY))
        return step(self, batch, epoch)

    monkeypatch.setattr(CrossBatchTrainer, "step", leaky)
    try:
        with pytest.raises(SystemExit) as stop:
            soak(tmp_path, "--steps", "40", "--every", "2", "--slowdown", "20", "--memory", "500")
    finally:
        for handle in leaked:
            os.close(handle)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: file handles grew by")
    assert error.count("\n") == 1


def test_too_few_samples_are_no_verdict(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        soak(tmp_path, "--steps", "3", "--every", "1")
    assert stop.value.code == 2
    assert "3 samples are too few" in capsys.readouterr().err
