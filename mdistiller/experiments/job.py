"""One training as a process of its own: its folder, its state, its command line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import mdistiller
from mdistiller.config import Config, experiment_name, load_cfg, used_groups
from mdistiller.config.names import hash_of, identity_settings, relevant
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.engine.rundir.records import read_metrics
from mdistiller.errors import ConfigError

LOG_LINES = 8
PARENT = "PARENT"
STATES = ("done", "running", "failed", "waiting")

_LOG_RULE = "---- process started"


__all__ = ["Job", "hash_of", "identity", "identity_hash", "identity_of", "relevant"]

identity_of = identity_settings


def identity(cfg: Config) -> dict[str, Any]:
    """The settings behind :func:`mdistiller.config.identity`."""
    return identity_settings(used_groups(cfg).leaves())


def identity_hash(cfg: Config) -> str:
    """:func:`mdistiller.config.identity`."""
    return hash_of(identity(cfg))


@dataclass(frozen=True)
class Job:
    """One training: a configuration file and overrides ``KEY VALUE ...``."""

    cfg_file: str
    opts: tuple[str, ...] = ()
    cfg: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cfg", load_cfg(self.cfg_file, self.opts))

    @property
    def folder(self) -> Path:
        return Path(self.cfg.LOG.PREFIX) / experiment_name(self.cfg, self.opts)

    @property
    def log(self) -> Path:
        """What the process prints; beside the folder, which a fresh run sets aside."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def failure_file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".failed.json")

    @property
    def claim_file(self) -> Path:
        """Locked by the process that looks after this job, see ``engine.lock.claim``."""
        return self.folder.parent / ".claims" / self.folder.name

    # ---- state ---------------------------------------------------------------------------

    def state(self) -> str:
        """One of :data:`STATES`; an interrupted run is waiting."""
        if self.result() is not None:
            return "done"
        if is_locked(self.folder / ".lock") or is_locked(self.claim_file):
            return "running"
        return "failed" if self.failure_file.exists() else "waiting"

    def result(self) -> dict[str, Any] | None:
        """``result.json`` if this very configuration was trained to the end, else None."""
        if not self.has_same_config():
            return None
        try:
            return json.loads((self.folder / "result.json").read_text())
        except (OSError, json.JSONDecodeError):
            return None

    def has_same_config(self) -> bool:
        """Whether the run in the folder has this job's :func:`identity`."""
        try:
            return identity(load_cfg(self.folder / "config.yaml")) == identity(self.cfg)
        except ConfigError:
            return False

    def is_resumable(self) -> bool:
        return (self.folder / "latest").exists() and self.has_same_config()

    def epochs_done(self) -> int:
        return len(read_metrics(self.folder))

    # ---- failure -------------------------------------------------------------------------

    def open_log(self) -> IO[str]:
        """The log to be continued, with a line that says where a new process begins."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = self.log.open("a")
        log.write(f"{_LOG_RULE} {_now()}\n")
        log.flush()
        return log

    def begin_log(self, first: Job) -> None:
        """:meth:`open_log` for a process that prints to the log of ``first``."""
        with self.open_log() as log:
            if first != self:
                log.write(
                    f"in one process with {first.folder.name}, whose log has what is of all\n"
                )

    def log_tail(self) -> list[str]:
        """The last lines of the last process."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        _, _, last = text.rpartition(_LOG_RULE)
        return last.splitlines()[1:][-LOG_LINES:]

    def mark_failed(self, exit_code: int) -> None:
        """Write :attr:`failure_file`, which :meth:`forget_failure` removes."""
        failure = {
            "exit_code": exit_code,
            "tail": self.log_tail(),
            "finished": _now(),
        }
        write_json(self.failure_file, failure)

    def forget_failure(self) -> None:
        self.failure_file.unlink(missing_ok=True)

    def describe_failure(self) -> str:
        lines = "\n  ".join(self.log_tail())
        return f"{self.folder} failed, its log {self.log} ends with:\n  {lines}"


def command(jobs: Sequence[Job]) -> list[str]:
    """Of the process that trains one job or several side by side, without the interpreter.

    See :mod:`~.tether` and :mod:`~.fleet_process`. The process that starts it puts its own id
    where PARENT stands.
    """
    if len(jobs) == 1:
        return ["-m", "mdistiller.experiments.tether", PARENT, jobs[0].cfg_file, *jobs[0].opts]
    members = [json.dumps([job.cfg_file, *job.opts]) for job in jobs]
    return ["-m", "mdistiller.experiments.fleet.process", PARENT, *members]


def training_variables(threads: int) -> dict[str, str]:
    """Environment variables with which a training finds this package and divides the machine."""
    root = str(Path(mdistiller.__file__).resolve().parents[1])
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)
