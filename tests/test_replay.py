"""Weights of every step on file, and the trainer that uses them again."""

from __future__ import annotations

import json

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine import trainer_dict
from mdistiller.engine.check import check_config
from mdistiller.engine.rundir.records import read_lines
from mdistiller.engine.trainers.replay import read_weights
from mdistiller.errors import CheckpointError, ConfigError, InterruptedRun
from mdistiller.seeding import generator

from .test_resume import STEPS, build, outcome, stop_after
from .toys import config, loader, networks

EPOCHS = 3
KEPT = ("LOG.WEIGHTS", True)
# So that the two ways to the same update differ by rounding alone.
PLAIN = ("SOLVER.FOLD_TEACHER", False, "SOLVER.CHANNELS_LAST", False)


def build_replay(tmp_path, file, *opts, shuffle=False):
    return build(tmp_path, "replay", "REPLAY.FILE", str(file), "REPLAY.SHUFFLE", shuffle, *opts)


@pytest.fixture
def source(tmp_path):
    """A cross-batch run with the weights of its steps, and that file."""
    trainer = build(tmp_path / "source", "cross-batch", *KEPT, *PLAIN)
    trainer.train()
    return trainer, trainer.log_path / "weights.jsonl"


def student(trainer):
    return trainer.distiller.student.state_dict()


# ---- the file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["cross-batch", "cross-batch, period", "PCGrad", "GradNorm", "distill-decay"]
)
def test_the_file_has_the_weights_of_every_step(tmp_path, case):
    trainer = build(tmp_path, case, *KEPT)
    seen = []
    plain = trainer.step

    def step(batch, epoch):
        result = plain(batch, epoch)
        seen.append(torch.stack(result.weights).tolist())
        return result

    trainer.step = step
    trainer.train()
    found = read_weights(trainer.log_path / "weights.jsonl")
    assert found.shape == (EPOCHS * STEPS, 2)
    assert found.tolist() == seen
    # The means in metrics.jsonl are over the steps that solved for weights.
    period = trainer.cfg.CROSSBATCH.PERIOD
    solved = found[torch.arange(len(found)) % period == 0]
    logged = [e[trainer.diagnostics_name] for e in read_lines(trainer.log_path / "metrics.jsonl")]
    if period == 1:
        means = solved.view(EPOCHS, STEPS, 2).mean(1)
        assert [e["ce"] for e in logged] == pytest.approx(means[:, 0].tolist())
        assert [e["kd"] for e in logged] == pytest.approx(means[:, 1].tolist())
    else:
        # Reused in between.
        assert found[0].tolist() == found[1].tolist() == found[2].tolist()


@pytest.mark.parametrize("case", ["vanilla", "cross-batch"])
def test_without_being_asked_or_without_weights_there_is_no_file(tmp_path, case):
    trainer = build(tmp_path, case, *(KEPT if case == "vanilla" else ()))
    trainer.train()
    assert not (trainer.log_path / "weights.jsonl").exists()


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 2, 2 * STEPS])
def test_a_resumed_run_has_the_same_file(tmp_path, source, step):
    whole, file = source
    part = build(tmp_path / "part", "cross-batch", *KEPT, *PLAIN)
    stop_after(part, step)
    with pytest.raises(InterruptedRun):
        part.train()
    again = part.log_path / "weights.jsonl"
    # As if the process had been killed after writing more than its checkpoint knows.
    with again.open("a") as lines:
        lines.write(json.dumps({"epoch": 7, "ce": [1.0], "kd": [1.0]}) + '\n{"epo')
    resumed = build(tmp_path / "part", "cross-batch", *KEPT, *PLAIN)
    resumed.train(resume=True)
    assert again.read_bytes() == file.read_bytes()


# ---- replay ----------------------------------------------------------------------------------


def test_replayed_in_order_the_updates_are_those_of_the_run(tmp_path, source):
    trainer, file = source
    again = build_replay(tmp_path / "replay", file, *PLAIN)
    again.train()
    for key, value in student(trainer).items():
        # Rounding of one backward pass against a combination of two, over 15 steps.
        assert torch.allclose(student(again)[key], value, rtol=1e-4, atol=1e-6), key
    plain = build(tmp_path / "plain", "distill-decay", *PLAIN)
    plain.train()
    gap = max(
        (student(plain)[k].float() - v.float()).abs().max() for k, v in student(trainer).items()
    )
    assert gap > 1e-3


def test_shuffled_every_weight_is_used_once_in_the_seeds_order(tmp_path, source):
    file = source[1]
    trainer = build_replay(tmp_path / "a", file, *KEPT, shuffle=True)
    trainer.train()
    used = read_weights(trainer.log_path / "weights.jsonl")
    given = read_weights(file).float().double()
    order = torch.randperm(EPOCHS * STEPS, generator=generator(0, "replay"))
    assert torch.equal(used, given[order])
    assert not torch.equal(used, given)
    assert sorted(used.tolist()) == sorted(given.tolist())
    other = build_replay(tmp_path / "b", file, "EXPERIMENT.SEED", 1, *KEPT, shuffle=True)
    other.train()
    assert not torch.equal(read_weights(other.log_path / "weights.jsonl"), used)


@pytest.mark.parametrize("step", [2, STEPS, STEPS + 3])
def test_a_replay_resumes_with_the_same_bits(tmp_path, source, step):
    file = source[1]
    whole = build_replay(tmp_path / "whole", file, *KEPT, shuffle=True)
    whole.train()
    part = build_replay(tmp_path / "part", file, *KEPT, shuffle=True)
    stop_after(part, step)
    with pytest.raises(InterruptedRun):
        part.train()
    resumed = build_replay(tmp_path / "part", file, *KEPT, shuffle=True)
    resumed.train(resume=True)
    a, b = outcome(whole), outcome(resumed)
    assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])
    assert a[1:] == b[1:]
    name = "weights.jsonl"
    assert (whole.log_path / name).read_bytes() == (resumed.log_path / name).read_bytes()


def test_a_replay_is_not_continued_with_another_file(tmp_path, source):
    file = source[1]
    part = build_replay(tmp_path / "part", file)
    stop_after(part, 2)
    with pytest.raises(InterruptedRun):
        part.train()
    other = tmp_path / "other.jsonl"
    other.write_text(file.read_text().replace("0.", "0.1", 1))
    with pytest.raises(CheckpointError, match="other weights than those in REPLAY.FILE"):
        build_replay(tmp_path / "part", other).train(resume=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is no file with weights; give the weights.jsonl of a run"),
        ("", "is no file with weights"),
        ('{"epoch": 2, "ce": [1], "kd": [1]}\n', "its epochs are not 1, 2, 3"),
        ('{"epoch": 1, "ce": [1]}\n', "no entry 'kd'"),
        ('{"epoch": 1, "ce": [1], "kd": [NaN]}\n', "a weight is not a finite number"),
        ('{"epoch": 1, "ce": [1, 2], "kd": [1]}\n', "is damaged"),
        ('{"epoch": 1, "ce": [1], "kd": [1]}\n', "has the weights of 1 steps, but this run has 8"),
    ],
)
def test_files_that_do_not_fit_are_one_line(tmp_path, text, words):
    file = tmp_path / "weights.jsonl"
    if text is not None:
        file.write_text(text)
    cfg = config(tmp_path, "SOLVER.TRAINER", "replay", "DISTILLER.TYPE", "KD")
    cfg.merge_from_list(["REPLAY.FILE", str(file), "DATASET.TYPE", "digits"])
    cfg.merge_from_list(["DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet20"])
    distiller = distiller_dict["KD"](*networks(), cfg)
    with pytest.raises(ConfigError, match=words) as error:
        check_config(cfg)
        trainer_dict["replay"]("run", distiller, loader(), loader(), cfg)
    assert "\n" not in str(error.value)
