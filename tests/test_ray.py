"""The Ray backend, on a cluster of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mdistiller.errors import MdistillerError
from mdistiller.experiments import Plan, RayBackend, ray_backend
from mdistiller.experiments.watch import Watch, train

from . import commands
from .commands import ROOT
from .study_runs import complete
from .test_plan import request
from .test_reproduce import CHEAP, TABLE, start, teacher, wait_for  # noqa: F401 (a fixture)

PROC = Path("/proc")
# So many that a run of the small networks lasts until its worker is killed.
EPOCHS = 8


class FakeRay:
    """A cluster that can be up or down, whose tasks end when they are told to."""

    def __init__(self) -> None:
        self.joined, self.given, self.ended = 0, [], {}
        self.cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)
        self.exceptions = SimpleNamespace(RayError=RuntimeError)

    def init(self, **_) -> None:
        self.joined += 1

    def shutdown(self) -> None:
        self.ended.clear()

    def cluster_resources(self):
        return {"CPU": 2.0}

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address=self.address)

    def remote(self, **_):
        def give(*arguments) -> str:
            self.given.append(arguments)
            return f"task {len(self.given)}"

        return lambda function: SimpleNamespace(remote=give)

    def wait(self, refs, **_):
        return [ref for ref in refs if ref in self.ended], []

    def get(self, ref):
        return self.ended[ref]


@pytest.fixture
def fake(monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def listen(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def test_what_a_cluster_had_goes_to_the_one_after_it_and_what_is_done_is_not_repeated(
    tmp_path, fake, monkeypatch, capsys
) -> None:
    head = listen()
    port = head.getsockname()[1]
    fake.address = f"127.0.0.1:{port}"
    jobs = list(Plan(request(tmp_path, trials=2)).jobs.values())
    backend = RayBackend(fake.address)
    for job in jobs[:3]:
        backend.start((job,))
    fake.ended["task 1"] = 0
    assert backend.finished() == [(jobs[0], 0)]

    head.close()
    assert backend.finished() == [] and not backend.has_room()
    assert "has ended; 2 tasks are started again as soon as it is back" in capsys.readouterr().out
    assert backend.finished() == [] and fake.joined == 1
    complete(jobs[1])  # it was, before its worker could say so
    with listen(port):
        assert backend.finished() == [(jobs[1], 0)]
        assert len(fake.given) == 4 and fake.joined == 2 and backend.has_room()
        assert str(jobs[2].log) in fake.given[-1][3]
        fake.ended["task 4"] = 0
        assert backend.finished() == [(jobs[2], 0)]
        backend.start((jobs[3],))
    monkeypatch.setattr(ray_backend, "WAIT_MINUTES", 0.0)
    backend.finished()
    with pytest.raises(MdistillerError, match="give the same command again"):
        backend.finished()
    backend.stop()


def test_a_process_that_hangs_is_killed_and_one_that_writes_is_not(tmp_path, monkeypatch) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    folder.mkdir()
    silent = "import time; time.sleep(60)"
    loud = "import time, sys\nfor n in range(8): time.sleep(0.1); print(n, flush=True)"
    began = time.monotonic()
    monkeypatch.chdir(tmp_path)
    for words, code in ((silent, -9), (loud, 0)):
        command = ["-S", "-c", words]
        assert train(str(tmp_path), command, {}, [str(log), str(folder)], 0.4 / 60) == code
    assert time.monotonic() - began < 30
    first, *rest = log.read_text().splitlines()
    assert first.startswith("error: no sign of life for") and rest == list("01234567")
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", silent], stdout=file, start_new_session=True
        )
    patient = Watch([str(log)], 0)
    assert not patient.is_silent()
    patient.end(process)
    assert process.wait() == -signal.SIGKILL


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


def test_the_month_finds_what_is_missing_and_what_was_done_twice(tmp_path, monkeypatch) -> None:
    """benchmarks/ray_month.py, of which nothing but its check of what it finds is run here."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ray_month

    table = ray_month.Table(tmp_path, tmp_path / "teacher", 4)
    assert len({job.id for job in table.jobs}) == 4 and table.done() == 0
    for job in table.jobs:
        complete(job)
        job.log.write_text(f"{ray_month._BEGUN}\n{ray_month._ENDED} 50.00\n")
    records = tmp_path / "runs.jsonl"
    lines = [json.dumps({"id": job.id, "state": "done"}) + "\n" for job in table.jobs]
    records.write_text("".join(lines))
    found = table.audit(wall=60.0, workers=2)
    assert (found["runs"], found["begun"], found["slot_seconds"]) == (4, 4, 30.0)

    records.write_text("".join([*lines, lines[0]]))
    with pytest.raises(MdistillerError, match="^5 records of 4 runs$"):
        table.audit(60.0, 2)
    records.write_text("".join(lines))
    first, second, *_ = table.jobs
    first.log.write_text(2 * first.log.read_text())
    (second.folder / "result.json").unlink()
    with pytest.raises(MdistillerError, match=r"is not done; .* ended 2 times"):
        table.audit(60.0, 2)


# What stands for a training: the first one takes its worker along.
LOSES_ITS_WORKER = """
import os, signal, sys
with open(sys.argv[1], "a") as file:
    file.write("begun\\n")
if os.path.getsize(sys.argv[1]) == len("begun\\n"):
    os.kill(os.getppid(), signal.SIGKILL)
"""


# Old releases of ray leave their own processes to the interpreter's end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_task_whose_worker_is_lost_is_started_again(tmp_path, monkeypatch) -> None:
    """On a cluster; what trainings make of it is tried by make test-slow."""
    pytest.importorskip("ray")
    words = ["-S", "-c", LOSES_ITS_WORKER, str(tmp_path / "begun")]
    monkeypatch.setattr(ray_backend, "command", lambda jobs: words)
    (job, *_) = Plan(request(tmp_path)).jobs.values()
    backend = RayBackend(workers=1)
    try:
        backend.start((job,))
        deadline = time.monotonic() + 120
        while not (ended := backend.finished()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        backend.close()
    assert ended == [(job, 0)]
    assert (tmp_path / "begun").read_text() == 2 * "begun\n"


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="finds processes in /proc, which is Linux's")
def test_a_lost_worker_costs_no_run(tmp_path: Path, teacher: Path) -> None:  # noqa: F811
    pytest.importorskip("ray")
    arguments = (*TABLE, "--epochs", EPOCHS, "--prefix", tmp_path, "--backend", "ray")
    arguments = (*arguments, "--workers", 2, *CHEAP, "DISTILLER.TEACHER_CKPT", teacher)
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
        assert [json.loads(e)["epoch"] for e in entries] == list(range(1, EPOCHS + 1))
    # It was continued, not started afresh.
    assert not list(root.glob("*.1"))


def test_an_address_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    arguments = (*TABLE, "--prefix", tmp_path, "--backend", "ray", "--address", "127.0.0.1:1")
    done = commands.run("reproduce", *arguments, timeout=120)
    assert done.returncode == 1
    assert "error: cannot join Ray at 127.0.0.1:1" in done.stderr
