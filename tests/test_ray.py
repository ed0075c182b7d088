"""The Ray backend, on a cluster of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdistiller.errors import MdistillerError
from mdistiller.experiments import RayBackend

from .test_reproduce import TABLE, command, environment, start, wait_for

PROC = Path("/proc")


def test_without_ray_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(MdistillerError, match=r"pip install 'mdistiller\[ray\]'"):
        RayBackend()


def training_of(folder_name: str) -> tuple[int, int] | None:
    """Process ids of the training of a run and of the Ray worker that started it."""
    for entry in PROC.glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "mdistiller.experiments.worker" in words and any(folder_name in w for w in words):
            return int(entry.name), parent
    return None


def is_alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc, which is Linux's")
def test_a_lost_worker_costs_no_run(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    arguments = (*TABLE, "--epochs", 2, "--teacher-epochs", 1, "DATASET.SUBSET", 704)
    arguments = (*arguments, "--prefix", tmp_path, "--backend", "ray", "--workers", 2)
    process = start(*arguments)
    root = tmp_path / "runs" / "digits"
    wait_for(lambda: list(root.glob("kd-*/latest")), process)
    folder = next(root.glob("kd-*/latest")).parent
    training, worker = training_of(folder.name)
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(training):
        assert time.monotonic() < deadline, "the training outlives its worker"
        time.sleep(0.05)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    assert "2 of 2 runs are done" in stdout
    assert len(list(root.glob("*/config.yaml"))) == 2
    for folder in (file.parent for file in root.glob("*/config.yaml")):
        assert (folder / "result.json").exists()
        entries = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(e)["epoch"] for e in entries] == [1, 2]
    # It was continued, not started afresh.
    assert not list(root.glob("*.1"))


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    arguments = (*TABLE, "--prefix", tmp_path, "--backend", "ray", "--address", "127.0.0.1:1")
    done = subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: cannot join Ray at 127.0.0.1:1" in done.stderr
