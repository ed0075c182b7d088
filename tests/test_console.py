"""Whatever becomes of the output a training goes on; a tool that exists to print says so."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mdistiller.cli import exit_on_error
from mdistiller.console import Seldom, SteadyStream, log, shows_colours, steady_output
from mdistiller.engine.rundir.progress import Progress

from . import commands

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "tools/train.py")]
SHORT = [
    *("--cfg", "configs/digits/vanilla.yaml", "DATASET.SUBSET", "70", "SOLVER.EPOCHS", "1"),
    *("SOLVER.LR_DECAY_STAGES", "[]", "EXPERIMENT.NAME", "run", "DISTILLER.STUDENT", "convnet12"),
]


def shell(line: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A tool of tools/ started by a shell, which can close what Python cannot."""
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {line}', *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def result_of(prefix: Path) -> Path:
    """The folder of the run that ended below ``prefix``."""
    (result,) = prefix.rglob("result.json")
    return result.parent


def test_a_training_goes_on_without_an_output(tmp_path):
    """Closed from the very beginning of Python, which then has no streams at all."""
    done = shell(">&- 2>&- <&-", *TRAIN, *SHORT, "LOG.PREFIX", str(tmp_path))
    assert done.returncode == 0, done.stderr
    # Nothing that was printed has gone into a file which took a closed descriptor's number.
    files = [f for f in result_of(tmp_path).iterdir() if f.is_file()]
    assert all(b"CONFIG:" not in f.read_bytes() for f in files)


def test_a_training_goes_on_when_its_output_is_full(tmp_path):
    outputs = ("/dev/full", tmp_path / "stderr")
    process = commands.start("train", *SHORT, "LOG.PREFIX", tmp_path, outputs=outputs)
    process.join(120)
    assert process.exitcode == 0, outputs[1].read_text()
    assert result_of(tmp_path)


@pytest.mark.slow
def test_a_training_goes_on_when_its_terminal_is_gone(tmp_path):
    ours, theirs = pty.openpty()
    command = [*TRAIN, *SHORT, "LOG.PREFIX", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 1)
        os.close(ours)
        assert process.wait(120) == 0
    assert result_of(tmp_path)


def test_a_tool_that_prints_ends_in_one_line(tmp_path):
    """That its reader has gone: test_tools.py."""
    outputs = ("/dev/full", tmp_path / "stderr")
    process = commands.start("settings", outputs=outputs)
    process.join(120)
    said = outputs[1].read_text()
    assert (process.exitcode, said.count("\n")) == (1, 1)
    assert "standard output: No space left on device" in said


def test_characters_that_the_encoding_lacks_are_replaced():
    code = "from mdistiller.console import log; log('a \\N{MINUS SIGN} b \\N{RIGHTWARDS ARROW} c')"
    for encoding in ("cp1252", "ascii"):
        done = shell("", sys.executable, "-c", code, PYTHONIOENCODING=encoding)
        assert done.stdout == "a ? b ? c\n"


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_failing_stream_is_remembered_and_raises_nothing():
    with open(os.devnull) as read_only:
        for stream in (None, Broken(), read_only):
            steady = SteadyStream(stream)
            print("text", file=steady, flush=True)
            assert isinstance(steady.failure, OSError)
            assert not steady.isatty()
            print("more", file=steady, flush=True)


def test_a_long_epoch_shows_signs_of_life_without_a_terminal(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress(epochs=3, steps=100)
    progress.start_epoch(1)
    for done in range(10, 101, 10):
        now += 240.0
        progress.step(done, done, {"train_loss": 2.0, "train_acc": 10.0})
    steps = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == [f"epoch 1/3, step {done}/100" for done in (30, 60, 90)]
    progress.start_epoch(2)
    progress.step(10, 10, {})
    assert not capsys.readouterr().out
    assert not Seldom(1.0).due()


def test_log_works_after_standard_output_was_closed(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None, Broken()):
        monkeypatch.setattr(sys, "stdout", stream)
        log("to nobody")
    assert capsys.readouterr() == ("", "")


def test_a_gone_reader_ends_a_printing_tool_silently(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(SystemExit) as end:
        exit_on_error(lambda: print("text"))()
    assert end.value.code == 141
    assert capsys.readouterr().err == ""


def test_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with steady_output() as output:
        assert sys.stdout is output
    assert (sys.stdout, sys.stderr) == before


def test_colours_can_be_switched_off(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shows_colours(terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shows_colours(terminal)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not shows_colours(terminal)
    assert not shows_colours(io.StringIO())
