"""tools/reproduce.py as a user runs it, with small trainings on digits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import build_model
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.experiments import Request, make_plan

from .toys import FEW_DIGITS

ROOT = Path(__file__).resolve().parents[1]
TABLE = (
    *("table1", "--dataset", "digits", "--pairs", "res20_res8", "--trials", 1, "--threads", 1),
    *("--methods", "KD"),
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "reproduce.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> subprocess.CompletedProcess:
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A checkpoint of a teacher; untrained, for nothing here depends on what it knows."""
    path = tmp_path_factory.mktemp("teacher") / "student_latest"
    torch.manual_seed(0)
    torch.save({"model": build_model("digits", "resnet20", 10).state_dict()}, path)
    return path


def folders(prefix: Path, table: str = "table1") -> dict[str, Path]:
    """Of the runs in the plan, by row."""
    root = prefix / table / "digits"
    plan = json.loads((root / "plan.json").read_text())
    return {cell["row"]: root / cell["runs"][0]["folder"] for cell in plan["cells"]}


def test_failed_runs_are_reported_kept_and_retried(tmp_path: Path, teacher: Path) -> None:
    opts = ("DISTILLER.TEACHER_CKPT", str(teacher), *FEW_DIGITS)
    arguments = (*TABLE, "--epochs", 1, "--workers", 2, "--prefix", tmp_path, *opts)
    wanted = Request(
        *("table1", "digits", ("res20_res8",), ("KD",)),
        trials=1,
        epochs=1,
        prefix=str(tmp_path),
        opts=opts,
    )
    # A file where the folder of the run should be.
    obstacle = make_plan(wanted).runs[1].job.folder
    name = obstacle.name
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()

    first = run(*arguments)
    assert first.returncode == 1
    assert "1 of 2 runs are done" in first.stdout
    assert f"{name}: FAILED" in first.stdout
    assert "cannot write into" in first.stdout  # the log's last lines
    assert first.stderr == (
        "error: 1 runs failed; see above, and train them again with --retry-failed\n"
    )
    found = folders(tmp_path)
    assert found["kd_crossbatch"].name == name
    failure = json.loads((obstacle.parent / f"{name}.failed.json").read_text())
    assert failure["exit_code"] == 1
    assert "cannot write into" in failure["tail"][-1]

    obstacle.unlink()
    began = (found["kd"] / "result.json").stat().st_mtime_ns
    second = run(*arguments)
    assert second.returncode == 1
    assert " % after" not in second.stdout  # nothing was trained
    third = run(*arguments, "--retry-failed", "SOLVER.DEVICE", "cpu")
    assert third.returncode == 0, third.stderr
    assert "2 of 2 runs are done" in third.stdout
    assert not (obstacle.parent / f"{name}.failed.json").exists()
    assert (found["kd"] / "result.json").stat().st_mtime_ns == began

    results = {row: json.loads((f / "result.json").read_text()) for row, f in found.items()}
    assert results["kd"]["seed"] == results["kd_crossbatch"]["seed"]
    assert results["kd_crossbatch"]["trainer"] == "crossbatch"
    dry = run(*arguments, "--dry-run")
    assert "(2 done)" in dry.stdout
    assert "left: 0 s" in dry.stdout


def test_ctrl_c_and_kill_leave_runs_that_are_continued(tmp_path: Path, teacher: Path) -> None:
    arguments = ("table2", *TABLE[1:-1], "original", "--epochs", 2, "--prefix", tmp_path)
    arguments = (*arguments, "DISTILLER.TEACHER_CKPT", teacher)
    root = tmp_path / "table2" / "digits"

    process = start(*arguments)
    wait_for(lambda: list(root.glob("*/latest")), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "the same command continues" in stdout
    assert stderr == "error: interrupted\n"
    (folder,) = folders(tmp_path, "table2").values()
    log = folder.with_name(folder.name + ".log")
    assert not is_locked(folder / ".lock")

    process = start(*arguments)
    wait_for(lambda: is_locked(folder / ".lock"), process)
    process.kill()
    process.communicate()
    # The training ends with it, so that its folder can be taken over at once.
    deadline = time.monotonic() + 5
    while is_locked(folder / ".lock"):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in entries] == [1, 2]
    assert log.read_text().count("process started") == 3
    assert not list(root.glob("*.1"))  # nothing was started afresh


def students(prefix: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The final weights of every run that is done, by row."""
    found = {row: folder / "student_latest" for row, folder in folders(prefix).items()}
    return {row: torch.load(p, weights_only=True)["model"] for row, p in found.items()}


def test_runs_that_share_their_teacher_are_killed_fail_and_end_as_alone(
    tmp_path: Path, teacher: Path
) -> None:
    opts = ("DISTILLER.TEACHER_CKPT", str(teacher), "DATASET.SUBSET", "704")
    arguments = (*TABLE, "AT", "--epochs", 1, *opts)
    shared = (*arguments, "--share-teacher", "--prefix", tmp_path / "shared")
    plan = make_plan(
        Request(
            *("table1", "digits", ("res20_res8",), ("KD", "AT")),
            *(1, 1, None, str(tmp_path / "shared")),
            opts=opts,
        )
    )
    jobs = {run.cell.row.key: run.job for run in plan.runs}
    obstacle = jobs["at"].folder  # a file where a run's folder should be
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()

    process = start(*shared, "LOG.SAVE_EVERY_STEPS", 4)
    wait_for(
        lambda: all((jobs[row].folder / "latest").exists() for row in ("kd", "kd_crossbatch")),
        process,
    )
    # Recorded while the others train.
    assert jobs["at"].failure_file.exists()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while is_locked(jobs["kd"].folder / ".lock"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert jobs["kd"].result() is None

    second = run(*shared)
    assert "processes: 1 x 3 runs\n" in second.stdout
    assert second.returncode == 1
    assert "3 of 4 runs are done" in second.stdout
    assert "cannot write into" in jobs["at"].failure_file.read_text()
    obstacle.unlink()
    third = run(*shared, "--retry-failed")
    assert third.returncode == 0, third.stderr
    assert "4 of 4 runs are done" in third.stdout

    alone = (*TABLE, *arguments[len(TABLE) + 1 :], "--prefix", tmp_path / "alone")
    assert run(*alone).returncode == 0
    one, other = students(tmp_path / "shared"), students(tmp_path / "alone")
    assert list(other) == ["kd", "kd_crossbatch"]
    for row, weights in other.items():
        assert [k for k, v in weights.items() if not torch.equal(v, one[row][k])] == []
    for row, job in jobs.items():
        assert job.result()["fleet"] == (1 if row == "at" else 3)
        assert "epoch 1/1" in job.log.read_text()
    assert f"in one process with {jobs['kd'].folder.name}" in jobs["kd_crossbatch"].log.read_text()


def test_two_calls_at_once_train_every_run_once(tmp_path: Path, teacher: Path) -> None:
    arguments = (*TABLE, "--epochs", 1, "--prefix", tmp_path, *FEW_DIGITS)
    arguments = (*arguments, "DISTILLER.TEACHER_CKPT", teacher)
    processes = [start(*arguments), start(*arguments)]
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    for folder in folders(tmp_path).values():
        assert (folder / "result.json").exists()
        log = folder.with_name(folder.name + ".log").read_text()
        assert log.count("process started") == 1


def test_a_recorded_run_is_done_where_its_folder_is_gone(tmp_path: Path, teacher: Path) -> None:
    arguments = ("grid_d", *TABLE[1:-1], "vanilla", "--epochs", 1, "--prefix", tmp_path / "output")
    arguments = (*arguments, "--record", tmp_path / "results", *FEW_DIGITS)
    arguments = (*arguments, "DISTILLER.TEACHER_CKPT", teacher)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "output").rglob("result.json")
    (line,) = (tmp_path / "results" / "grid_d-digits.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["result"] == json.loads(result.read_text())
    metrics = (result.parent / "metrics.jsonl").read_text()
    assert record["epochs"][0]["test_acc"] == pytest.approx(json.loads(metrics)["test_acc"])
    assert str(tmp_path) not in line
    shutil.rmtree(tmp_path / "output")
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "1 of 1 runs are done" in again.stdout
    assert not list((tmp_path / "output").rglob("result.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tabel1",), "unknown table 'tabel1'; did you mean 'table1'?"),
        (("table1", "--gpus-per-run", 1), "need --backend ray"),
        (("table1", "--fleet-size", 2), "--fleet-size needs --share-teacher"),
        (("table1", "--share-teacher", "--fleet-size", 0), "--fleet-size must be 1 or greater"),
    ],
)
def test_wrong_command_lines_end_with_one_line(tmp_path, arguments, words) -> None:
    done = run(*arguments, "--prefix", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
