"""What a run leaves beside its checkpoints, where disks, records and services are not sound."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import types

import pytest
import torch

from mdistiller.engine.rundir.checkpoint import save_checkpoint
from mdistiller.engine.rundir.folder import claim, is_locked
from mdistiller.engine.rundir.records import read_lines, read_metrics
from mdistiller.engine.rundir.result import source_commit
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.experiments.records import append_query
from mdistiller.experiments.schema import Query

from .test_resume import STEPS, assert_same, build, outcome

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def failing(number: int):
    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


# ---- file systems that lack something --------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the file system")
@pytest.mark.parametrize("number", UNSUPPORTED)
def test_a_file_system_without_locks_or_flushes_is_trained_on(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    monkeypatch.setattr(os, "fsync", failing(number))
    assert build(tmp_path, "vanilla").train()["epochs"] == 3
    assert build(tmp_path, "vanilla", "SOLVER.EPOCHS", 4).train(True, True)["epochs"] == 4


def test_what_is_missing_is_said_and_other_errors_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with pytest.warns(UserWarning, match="has no locks.*do not start a second process"):
        claim(tmp_path / ".lock").close()
    assert not is_locked(tmp_path / ".lock")
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError):
        claim(tmp_path / ".lock")
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    with pytest.warns(UserWarning, match="power cut"):
        save_checkpoint({}, tmp_path / "file")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.warns(UserWarning, match="power cut"):
        assert append_query(tmp_path, Query("table1"))
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint({}, tmp_path / "file")


# ---- records that are damaged or gone ---------------------------------------------------------


def test_a_damaged_line_costs_nothing_but_itself(tmp_path):
    build(tmp_path, "vanilla").train()
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged in (b"{half\n", b"\xff\xfe\n", b"[1]\n", b"3\n"):
        file.write_bytes(lines[0] + damaged + lines[1] + lines[2])
        with pytest.warns(UserWarning, match="line 2 is damaged"):
            assert [e["epoch"] for e in read_metrics(tmp_path / "run")] == [1, 2, 3]
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        build(tmp_path, "vanilla", "SOLVER.EPOCHS", 4).train(True, True)
    assert [e["epoch"] for e in read_lines(file)] == [1, 2, 3, 4]


def test_a_last_line_that_a_kill_cut_short_is_no_damage(tmp_path):
    file = tmp_path / "lines"
    file.write_text('{"epoch": 1}\n\n{"epoch": 2}\n{"epo')
    assert read_lines(file) == [{"epoch": 1}, {"epoch": 2}]
    assert read_lines(tmp_path / "none") == []


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_continues_from_latest_alone(tmp_path, capsys, epochs):
    """Copied without the rest, within the run or after its last epoch."""
    build(tmp_path / "first", "cross-batch", "SOLVER.EPOCHS", epochs).train()
    state = (tmp_path / "first" / "run" / "latest").read_bytes()
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "latest").write_bytes(state)
    rest, whole = build(tmp_path / "other", "cross-batch"), build(tmp_path / "w", "cross-batch")
    result = rest.train(resume=True, allow_changes=True)
    assert f"lacks {epochs} of the {epochs} epochs" in capsys.readouterr().out
    expected = whole.train()
    assert [result[k] for k in ("epochs", "last_top1", "best_top1", "best_epoch")] == [
        expected[k] for k in ("epochs", "last_top1", "best_top1", "best_epoch")
    ]
    assert [e["epoch"] for e in read_metrics(tmp_path / "other" / "run")] == list(range(epochs, 4))
    a, b = outcome(rest)[0], outcome(whole)[0]
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_finished_run_of_an_earlier_version_without_records_says_so(tmp_path):
    build(tmp_path, "vanilla").train()
    latest = tmp_path / "run" / "latest"
    state = torch.load(latest, weights_only=True)
    del state["entry"]
    torch.save(state, latest)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="tools/eval.py"):
        build(tmp_path, "vanilla").train(resume=True)


def test_another_repositorys_git_dir_is_not_ours(tmp_path, monkeypatch):
    own = source_commit()
    source_commit.cache_clear()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert source_commit() == own


# ---- TensorBoard and means across epochs ------------------------------------------------------


def windows(folder) -> dict[int, float]:
    """The logged weight of the distillation loss by step."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in (folder / "run" / "train.events").iterdir():
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                if value.tag == "crossbatch/kd":
                    found[event.step] = value.simple_value
            data = data[16 + length :]
    return found


def test_a_window_holds_its_steps_across_the_end_of_an_epoch(tmp_path):
    every = build(tmp_path / "1", "cross-batch", "LOG.TENSORBOARD_FREQ", 1)
    every.train()
    single = windows(tmp_path / "1")
    assert sorted(single) == list(range(1, 3 * STEPS + 1))
    build(tmp_path / "4", "cross-batch", "LOG.TENSORBOARD_FREQ", 4, "SOLVER.EPOCHS", 1).train()
    build(tmp_path / "4", "cross-batch", "LOG.TENSORBOARD_FREQ", 4).train(True, True)
    means = windows(tmp_path / "4")
    assert sorted(means) == [4, 8, 12]
    for end, mean in means.items():
        assert mean == pytest.approx(sum(single[n] for n in range(end - 3, end + 1)) / 4, rel=1e-5)


# ---- Weights & Biases -------------------------------------------------------------------------


class FakeRun:
    def __init__(self, service: FakeWandb, arguments: dict) -> None:
        self.service, self.arguments, self.summary = service, arguments, {}
        self.logged = []

    def log(self, entry: dict) -> None:
        if "log" in self.service.broken:
            raise RuntimeError("the service is gone")
        self.logged.append(entry)

    def finish(self) -> None:
        if "finish" in self.service.broken:
            raise TimeoutError("still uploading")


class FakeWandb(types.ModuleType):
    """The part of wandb that is used, with faults on request."""

    def __init__(self, broken=()) -> None:
        super().__init__("wandb")
        self.broken, self.runs = set(broken), []
        self.api = types.SimpleNamespace(api_key="key")
        self.Settings = lambda **limits: limits

    def init(self, **arguments):
        assert arguments["settings"]["init_timeout"] <= 60
        assert arguments["settings"]["finish_timeout"] <= 60
        if arguments["mode"] in self.broken:
            raise RuntimeError(f"no answer\n({arguments['mode']})")
        self.runs.append(FakeRun(self, arguments))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch):
    def install(*broken):
        fake = FakeWandb(broken)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    monkeypatch.delenv("WANDB_MODE", raising=False)
    return install


WANDB = ("LOG.WANDB", True)


def test_a_resumed_training_continues_its_wandb_run(tmp_path, wandb):
    service = wandb()
    build(tmp_path, "vanilla", *WANDB, "SOLVER.EPOCHS", 2).train()
    build(tmp_path, "vanilla", *WANDB).train(resume=True, allow_changes=True)
    build(tmp_path, "vanilla", *WANDB).train()
    first, second, third = (run.arguments for run in service.runs)
    assert first["id"] == second["id"] != third["id"]
    assert second["resume"] == "allow"
    assert [e["epoch"] for run in service.runs for e in run.logged] == [1, 2, 3, 1, 2, 3]
    assert service.runs[-1].summary["best_acc"] >= 0


@pytest.mark.parametrize(
    "broken", [("online",), ("online", "offline"), ("log",), ("finish",), ("log", "finish")]
)
def test_no_fault_of_wandb_ends_a_training(tmp_path, wandb, capsys, broken):
    service = wandb(*broken)
    trainer, plain = build(tmp_path, "vanilla", *WANDB), build(tmp_path / "plain", "vanilla")
    trainer.train()
    plain.train()
    assert_same(outcome(trainer), outcome(plain))
    assert "Weights & Biases failed" in capsys.readouterr().out
    if broken == ("online",):
        assert [run.arguments["mode"] for run in service.runs] == ["offline"]
        assert len(service.runs[0].logged) == 3


def test_a_mode_that_is_none_is_refused_before_training(tmp_path, wandb, monkeypatch):
    wandb()
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match="WANDB_MODE is 'ofline'.*offline") as refused:
        build(tmp_path, "vanilla", *WANDB).train()
    assert refused.value.exit_code == 2
    assert not (tmp_path / "run" / "latest").exists()


@pytest.mark.slow
def test_the_real_wandb_without_a_server(tmp_path):
    """An address where nobody answers: the training ends, and soon."""
    pytest.importorskip("wandb")
    program = (
        "from pathlib import Path\nfrom tests.test_resume import build\n"
        f"build(Path({str(tmp_path)!r}), 'vanilla', 'LOG.WANDB', True).train()\n"
    )
    environment = {
        **os.environ,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_SILENT": "true",
    }
    environment.pop("WANDB_MODE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 3
