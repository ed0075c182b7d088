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
from mdistiller.console import SteadyStream, log, shows_colours, steady_output

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "tools/train.py")]
SHORT = [
    *("--cfg", "configs/digits/vanilla.yaml", "DATASET.SUBSET", "70", "SOLVER.EPOCHS", "1"),
    *("SOLVER.LR_DECAY_STAGES", "[]", "EXPERIMENT.NAME", "run"),
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


@pytest.mark.parametrize("line", [">/dev/full", ">&- 2>&- <&-"])
def test_a_training_goes_on_without_an_output(line, tmp_path):
    done = shell(line, *TRAIN, *SHORT, "LOG.PREFIX", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.rglob("result.json")
    # Nothing that was printed has gone into a file which took a closed descriptor's number.
    assert all(b"CONFIG:" not in f.read_bytes() for f in result.parent.iterdir() if f.is_file())


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
    assert list(tmp_path.rglob("result.json"))


def test_a_tool_that_prints_ends_in_one_line():
    done = shell(">/dev/full", *TRAIN, "--list")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "standard output: No space left on device" in done.stderr
    assert shell("| true; exit ${PIPESTATUS[0]}", *TRAIN, "--help").returncode in (0, 141)


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


def test_log_works_after_standard_output_was_closed(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None, Broken()):
        monkeypatch.setattr(sys, "stdout", stream)
        log("to nobody")


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
