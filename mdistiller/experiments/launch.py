"""Runs trainings as processes of their own, several at a time, each at most once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mdistiller
from mdistiller.engine.cfg import dump_cfg, experiment_name, load_cfg
from mdistiller.errors import MdistillerError

_LOG_LINES = 8
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """One training: a configuration file and overrides ``KEY VALUE ...``."""

    cfg_file: str
    opts: tuple[str, ...] = ()
    _cfg: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cfg", load_cfg(self.cfg_file, self.opts))

    @property
    def folder(self) -> Path:
        return Path(self._cfg.LOG.PREFIX) / experiment_name(self._cfg, self.opts)

    @property
    def log(self) -> Path:
        """What the process prints; beside the folder, which a fresh run sets aside."""
        return self.folder.with_name(self.folder.name + ".log")

    def result(self) -> dict[str, Any] | None:
        """``result.json`` if this very configuration was trained to the end, else None."""
        return json.loads((self.folder / "result.json").read_text()) if self._is_done() else None

    def _same_config(self) -> bool:
        path = self.folder / "config.yaml"
        return path.exists() and path.read_text() == dump_cfg(self._cfg)

    def _is_done(self) -> bool:
        return (self.folder / "result.json").exists() and self._same_config()

    def start(self, threads: int) -> subprocess.Popen:
        """Train in a new process, or continue where an earlier one was interrupted."""
        command = [sys.executable, "-m", "mdistiller.engine.command", "--cfg", self.cfg_file]
        if (self.folder / "latest").exists() and self._same_config():
            command.append("--resume")
        root = str(Path(mdistiller.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*command, *self.opts], stdout=log, stderr=subprocess.STDOUT, env=environment
            )


def launch(jobs: list[Job], workers: int = 1) -> None:
    """Train every job that is not done yet.

    Args:
        jobs: run in this order.
        workers: how many at a time; the processor's threads are divided among them.

    Raises:
        MdistillerError: a job failed; names its log and the log's last lines. The others that
            had started are finished first, and none of the finished is repeated next time.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting = deque(job for job in jobs if job.result() is None)
    done, total = len(jobs) - len(waiting), len(jobs)
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    failed: list[Job] = []
    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < workers:
                job = waiting.popleft()
                running[job.start(threads)] = (job, time.monotonic())
            for process in [p for p in running if p.poll() is not None]:
                job, began = running.pop(process)
                if process.returncode:
                    failed.append(job)
                    continue
                done += 1
                seconds = time.monotonic() - began
                print(f"[{done}/{total}] {job.folder} in {seconds:.0f} s", flush=True)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
        raise
    if failed:
        raise MdistillerError(_describe(failed[0]))


def _describe(job: Job) -> str:
    tail = job.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return f"{job.folder} failed, its log {job.log} ends with:\n  " + "\n  ".join(tail)
