"""tools/reproduce.py as a user runs it, with small trainings on digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from mdistiller.commands.reproduce import main
from mdistiller.dataset import build_model
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.experiments import Plan, Request
from mdistiller.experiments.job import Job

from .forked import Forked
from .study_runs import row_of
from .toys import FEW_DIGITS

TABLE = (
    *("table1", "--dataset", "digits", "--pairs", "res20_res8", "--trials", 1, "--threads", 1),
    *("--methods", "KD"),
)
# Of a table on resnets, which take thirty times as long.
CHEAP = ("DISTILLER.TEACHER", "convnet12", "DISTILLER.STUDENT", "convnet12")


def start(*arguments: object) -> Forked:
    return Forked("reproduce", *arguments, env={**os.environ, "MKL_NUM_THREADS": "1"})


def run(capsys, *arguments: object) -> subprocess.CompletedProcess:
    """As a user's call, but in this process, which need not import everything once more."""
    capsys.readouterr()
    try:
        main([*map(str, arguments)])
        status = 0
    except SystemExit as end:
        status = end.code
    return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())


def wait_for(condition, process: Forked, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_free(folder: Path) -> None:
    """The training ends with the process that was killed, so that it can be taken over at once."""
    deadline = time.monotonic() + 10
    while is_locked(folder / ".lock"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A checkpoint of a teacher; untrained, for nothing here depends on what it knows."""
    path = tmp_path_factory.mktemp("teacher") / "student_latest"
    torch.manual_seed(0)
    torch.save({"model": build_model("digits", "convnet12", 10).state_dict()}, path)
    return path


def jobs_of(prefix: Path, *opts: str, methods=("KD",), epochs: int = 1) -> dict[str, Job]:
    """The runs of :data:`TABLE`, by row; nothing is written."""
    options = {"epochs": epochs, "prefix": str(prefix), "opts": opts}
    wanted = Request("table1", "digits", ("res20_res8",), methods, 1, **options)
    return {row_of(job): job for job in Plan(wanted, write=False).jobs.values()}


def obstruct(job: Job) -> None:
    """A file where a run's folder should be."""
    job.folder.parent.mkdir(parents=True)
    job.folder.touch()


def test_a_fleet_that_is_killed_goes_on_and_one_that_failed_is_tried_again(
    tmp_path: Path, teacher: Path, capsys
) -> None:
    """Its bits are compared with those of runs alone in test_fleet.py."""
    opts = ("DISTILLER.TEACHER_CKPT", str(teacher), *CHEAP)
    shared = (*TABLE, "AT", "--epochs", 1, "--share-teacher", *opts)
    shared = (*shared, "--prefix", tmp_path / "shared")
    jobs = jobs_of(tmp_path / "shared", *opts, methods=("KD", "AT"))
    obstruct(jobs["at"])

    process = start(*shared, "LOG.SAVE_EVERY_STEPS", 2)
    two = [jobs[row].folder / "latest" for row in ("kd", "kd_crossbatch")]
    wait_for(lambda: all(file.exists() for file in two), process)
    assert jobs["at"].failure_file.exists(), "noted while the others train"
    process.kill()
    process.communicate()
    wait_until_free(jobs["kd"].folder)
    assert jobs["kd"].result() is None

    second = run(capsys, *shared)
    assert second.returncode == 1
    assert "(1 failed, 3 waiting)" in second.stdout and "processes: 1 x 3 runs\n" in second.stdout
    assert "3 of 4 runs are done" in second.stdout
    assert f"{jobs['at'].title} failed: error: cannot write into" in second.stdout
    assert second.stderr == (
        "error: 1 runs failed; see above, and train them again with --retry-failed\n"
    )
    jobs["at"].folder.unlink()
    third = run(capsys, *shared, "--retry-failed", "SOLVER.DEVICE", "cpu")
    assert third.returncode == 0, third.stderr
    assert third.stdout.count(" % after") == 1 and "4 of 4 runs are done" in third.stdout
    assert not jobs["at"].failure_file.exists()

    for row, job in jobs.items():
        assert job.result()["fleet"] == (1 if row == "at" else 3)
        assert "epoch 1/1" in job.log.read_text()
    assert f"in one process with {jobs['kd'].title}" in jobs["kd_crossbatch"].log.read_text()

    lines = (tmp_path / "shared" / "runs.jsonl").read_text()
    assert [json.loads(line)["state"] for line in lines.splitlines()].count("done") == 4
    assert str(tmp_path) not in lines


def test_ctrl_c_and_two_calls_at_once_train_every_run_once(
    tmp_path: Path, teacher: Path, capsys
) -> None:
    opts = ("DISTILLER.TEACHER_CKPT", str(teacher), *CHEAP, *FEW_DIGITS)
    arguments = (*TABLE, "--epochs", 2, "--prefix", tmp_path, *opts)
    jobs = jobs_of(tmp_path, *opts, epochs=2)

    process = start(*arguments)
    wait_for(lambda: (jobs["kd"].folder / "latest").exists(), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in stdout
    assert stderr == "error: interrupted\n"
    assert not is_locked(jobs["kd"].folder / ".lock")

    process = start(*arguments)
    assert run(capsys, *arguments).returncode == 0
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for job in jobs.values():
        entries = (job.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(e)["epoch"] for e in entries] == [1, 2]
    assert 2 <= sum(job.log.read_text().count("process started") for job in jobs.values()) <= 3
    assert not list((tmp_path / "runs" / "digits").glob("*.1")), "nothing was started afresh"
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "queries.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tabel1",), "unknown table 'tabel1'; did you mean 'table1'?"),
        (("table1", "--gpus-per-run", 1), "need --backend ray"),
        (("table1", "--fleet-size", 2), "--fleet-size needs --share-teacher"),
        (("table1", "--share-teacher", "--fleet-size", 0), "--fleet-size must be 1 or greater"),
    ],
)
def test_wrong_command_lines_end_with_one_line(tmp_path, capsys, arguments, words) -> None:
    done = run(capsys, *arguments, "--prefix", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
