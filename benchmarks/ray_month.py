"""Many tiny runs on a Ray cluster of this machine (Linux), of which one is killed, one hangs, and
whose head is restarted: all must be done, none twice.

tools/reproduce.py is called as a user calls it, with a head in processes of its own. A run is KD
with convnet12 on 64 images of digits for four epochs, so that almost all of its time is what a run
costs that has nothing to do. A part of the plan is then trained without Ray.

example:
  python benchmarks/ray_month.py --runs 12 --local 4 --out /tmp/month --json month.json
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import _common as common
import torch

from mdistiller.cli import exit_on_error
from mdistiller.dataset import build_model
from mdistiller.engine.rundir.records import read_metrics
from mdistiller.errors import MdistillerError
from mdistiller.experiments import Plan, Request
from mdistiller.experiments.job import Job

TOOL = Path(__file__).resolve().parents[1] / "tools" / "reproduce.py"
TINY = (
    *("DISTILLER.TEACHER", "convnet12", "DISTILLER.STUDENT", "convnet12"),
    *("DATASET.SUBSET", "64", "SOLVER.DEVICE", "cpu"),
)
EPOCHS = 4
HANG_MINUTES = 1.0

# What a training prints first and last.
_BEGUN, _ENDED = "CONFIG:\n", "top-1 of the last epoch"


class Head:
    """A Ray head with its files in ``folder``, which this process's children alone may join."""

    def __init__(self, folder: Path, port: int, cpus: int) -> None:
        self.address, self._folder = f"127.0.0.1:{port}", str(folder)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **token}
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", str(port)),
            *("--node-ip-address", "127.0.0.1", "--temp-dir", self._folder),
            *("--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", "80000000"),
            *("--include-dashboard", "false", "--include-log-monitor", "false", "--no-monitor"),
        ]

    def start(self) -> None:
        """Raises MdistillerError if that is not possible."""
        # Its agent must be up 15 s after its raylet, which is not always so on a busy machine.
        for _ in range(5):
            done = subprocess.run(
                self._command, env=self.environment, capture_output=True, text=True, check=False
            )
            if not done.returncode:
                return
            self.kill()
        raise MdistillerError(f"ray start: {(done.stderr or done.stdout).strip()[-300:]}")

    def kill(self) -> None:
        """Its own processes; ``ray stop`` would take every cluster's of this machine."""
        for pid, words in processes():
            if any(word.partition("=")[2].startswith(self._folder) for word in words):
                send(pid, signal.SIGKILL)


def processes() -> Iterator[tuple[int, list[str]]]:
    """Process ids and command lines."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            yield int(entry.name), (entry / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Table:
    """Vanilla and cross-batch KD, half of the ``runs`` each, below ``prefix``."""

    def __init__(self, prefix: Path, teacher: Path, runs: int) -> None:
        opts = (*TINY, "DISTILLER.TEACHER_CKPT", str(teacher))
        what = "table1", "digits", ("res20_res8",), ("KD",), runs // 2, EPOCHS
        plan = Plan(Request(*what, prefix=str(prefix), opts=opts), write=False)
        self.prefix, self.jobs = prefix, list(plan.jobs.values())
        self._words = ["table1", "--dataset", "digits", "--pairs", "res20_res8", "--methods", "KD"]
        self._words += ["--trials", str(runs // 2), "--epochs", str(EPOCHS), "--threads", "1"]
        self._words += ["--prefix", str(prefix), *opts]

    def command(self, *more: str) -> list[str]:
        """The user's."""
        return [sys.executable, str(TOOL), *self._words, *more]

    def done(self) -> int:
        return sum(map(is_done, self.jobs))

    def audit(self, wall: float, workers: int) -> dict[str, Any]:
        """What folders, logs and records say of the runs, and the times of a run.

        Raises:
            MdistillerError: a run is not done, or was trained on after it was.
        """
        wrong = [f"{job.title} is not done" for job in self.jobs if job.result() is None]
        logs = {job: job.log.read_text(encoding="utf-8", errors="replace") for job in self.jobs}
        for job, text in logs.items():
            epochs = [e["epoch"] for e in read_metrics(job.folder)]
            if epochs != list(range(1, EPOCHS + 1)) or text.count(_ENDED) > 1:
                wrong.append(f"{job.title}: epochs {epochs}, ended {text.count(_ENDED)} times")
        lines = (self.prefix / "runs.jsonl").read_text(encoding="utf-8").splitlines()
        records = map(json.loads, lines)
        ids = sorted(r["id"] for r in records if r["state"] == "done")
        if ids != sorted(job.id for job in self.jobs):
            wrong.append(f"{len(ids)} records of {len(set(ids))} runs")
        if aside := [p.name for p in (self.prefix / "runs").glob("*/*.1")]:
            wrong.append(f"started afresh: {', '.join(aside)}")
        if wrong:
            raise MdistillerError("; ".join(wrong))
        training = statistics.mean(job.result()["seconds"] for job in self.jobs)
        slot = wall * workers / len(self.jobs)
        return {
            "runs": len(self.jobs),
            "begun": sum(text.count(_BEGUN) for text in logs.values()),
            "wall_seconds": wall,
            "slot_seconds": slot,
            "training_seconds": training,
            "overhead_seconds": slot - training,
        }


def is_done(job: Job) -> bool:
    return (job.folder / "result.json").exists()


class Month:
    """The user's command, and what befalls it, each fault after so many runs."""

    def __init__(self, table: Table, head: Head, log: Path) -> None:
        self._table, self._head, self._log = table, head, log
        self._victim = 0
        self.commands, self.faults = 0, []
        n = len(table.jobs)
        self._coming = [(n // 6, "SIGKILL"), (n // 3, "SIGSTOP"), (n // 2, "head restarted")]

    def run(self, *more: str) -> float:
        """Seconds of the command, which is given again if it fails."""
        command = self._table.command("--backend", "ray", "--address", self._head.address, *more)
        self._head.start()
        began = time.monotonic()
        try:
            failed = True
            while failed and self.commands < 3:
                self.commands += 1
                with self._log.open("a") as log:
                    process = subprocess.Popen(
                        command, env=self._head.environment, stdout=log, stderr=subprocess.STDOUT
                    )
                while process.poll() is None:
                    self._let_come()
                    time.sleep(0.05)
                failed = process.returncode != 0
            if self._coming:
                raise MdistillerError(
                    f"not seen: {self._coming}; see {self._log}, or take more runs"
                )
            return time.monotonic() - began
        finally:
            self._head.kill()

    def _let_come(self) -> None:
        if not self._coming or self._table.done() < self._coming[0][0]:
            return
        if any(pid == self._victim for pid, _ in processes()):
            return  # it hangs; one fault after the other
        what, began = self._coming[0][1], time.monotonic()
        if what == "head restarted":
            self._head.kill()
            self._head.start()
            what += f" in {time.monotonic() - began:.0f} s"
        elif not self._strike(signal.Signals[what]):
            return
        self.faults.append((self._table.done(), what))
        self._coming.pop(0)
        print(f"after {self.faults[-1][0]} of {len(self._table.jobs)} runs: {what}", flush=True)

    def _strike(self, number: signal.Signals) -> bool:
        """Send a signal to a process that is in the middle of a run, if there is one."""
        begun = [job for job in self._table.jobs if (job.folder / "latest").exists()]
        middle = {str(job.folder): job for job in begun if not is_done(job)}
        for pid, words in processes() if middle else ():
            for folder in middle if "mdistiller.experiments.worker" in words else ():
                if any(folder in word for word in words):
                    send(pid, number)
                    if not is_done(middle[folder]):
                        self._victim = pid
                        return True
                    send(pid, signal.SIGCONT)  # it was, meanwhile
        return False


def in_words(found: dict[str, Any]) -> str:
    return (
        f"{found['runs']} runs done, none twice ({found['begun']} trainings begun or continued), "
        f"{found['wall_seconds']:.0f} s; a run takes a worker {found['slot_seconds']:.2f} s, "
        f"{found['training_seconds']:.2f} of them training, {found['overhead_seconds']:.2f} not"
    )


@exit_on_error
def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200, help="(default 200)")
    parser.add_argument("--local", type=int, default=20, help="of them without Ray (default 20)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=6479, help="of the head")
    parser.add_argument("--out", type=Path, required=True, help="a new folder with a short name")
    args = common.start(parser)
    out, workers = args.out.resolve(), args.workers
    out.mkdir(parents=True)
    teacher = out / "teacher"
    torch.save({"model": build_model("digits", "convnet12", 10).state_dict()}, teacher)
    table = Table(out / "month", teacher, args.runs)
    month = Month(table, Head(out / "ray", args.port, workers), out / "month.log")
    wall = month.run("--workers", str(workers), "--hang-minutes", str(HANG_MINUTES))
    ray = table.audit(wall, workers) | {"faults": month.faults, "commands": month.commands}
    print(f"Ray: {in_words(ray)}; command given {month.commands} times", flush=True)
    table, began = Table(out / "local", teacher, args.local), time.monotonic()
    subprocess.run(table.command("--workers", str(workers)), check=True, stdout=subprocess.DEVNULL)
    local = table.audit(time.monotonic() - began, workers)
    print(f"without Ray: {in_words(local)}")
    if args.json:
        report = {"machine": common.machine(torch.device("cpu")), "ray": ray, "local": local}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
