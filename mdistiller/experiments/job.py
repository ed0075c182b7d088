"""One training as a process of its own: its folder, its state, its log."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import yaml

from mdistiller.config import experiment_name, identity, identity_of, load_cfg
from mdistiller.engine.rundir.files import write_text
from mdistiller.engine.rundir.folder import is_locked
from mdistiller.engine.rundir.records import read_metrics
from mdistiller.errors import DataError

LOG_LINES = 8

# Exit statuses of a process that had no time to say why, as subprocess and as the shell tells it.
KILLED = (-9, 137)
_WAS_KILLED = "its process was killed, as by a system that is short of memory"

_LOG_RULE = "---- process started"


@dataclass(frozen=True)
class Job:
    """One training: a configuration file and overrides ``KEY VALUE ...``, known by its id.

    Attributes:
        id: of its configuration (:func:`mdistiller.config.identity`).
        folder: where it leaves its files; ``opts`` must say so.
        label: what it is for, in messages.
    """

    id: str
    cfg_file: str = field(compare=False)
    opts: tuple[str, ...] = field(compare=False)
    folder: Path = field(compare=False)
    label: str = field(default="", compare=False)

    @classmethod
    def of(cls, cfg_file: str, opts: tuple[str, ...] = ()) -> Job:
        """In the folder that ``tools/train.py`` would use."""
        cfg = load_cfg(cfg_file, opts)
        folder = Path(cfg.LOG.PREFIX) / experiment_name(cfg)
        return cls(identity(cfg), cfg_file, opts, folder)

    @classmethod
    def in_folder(
        cls, id: str, cfg_file: str, opts: tuple[str, ...], folder: Path, label: str = ""
    ) -> Job:
        """In ``folder``, of which the last three parts are LOG.PREFIX, project and name."""
        place = ("LOG.PREFIX", str(folder.parent.parent), "EXPERIMENT.PROJECT", folder.parent.name)
        return cls(id, cfg_file, (*opts, *place, "EXPERIMENT.NAME", folder.name), folder, label)

    @classmethod
    def from_folder(cls, folder: Path) -> Job:
        """The run that has left its files in ``folder``, whatever started it.

        Raises:
            DataError: there is none.
        """
        if (id := folder_id(folder)) is None:
            raise DataError(f"{folder} holds no run: its config.yaml is missing or damaged")
        return cls(id, str(folder / "config.yaml"), (), folder)

    @cached_property
    def cfg(self) -> Any:
        return load_cfg(self.cfg_file, self.opts)

    @property
    def title(self) -> str:
        """E.g. "kd-res56_res20-t0-1a2b3c4d"."""
        return f"{self.label}-{self.id}" if self.label else self.folder.name

    @property
    def log(self) -> Path:
        """What the process prints; beside the folder, which a fresh run sets aside."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def failure_file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".failed.json")

    @property
    def claim_file(self) -> Path:
        """Locked by the process that looks after this job."""
        return self.folder.parent / ".claims" / self.folder.name

    # ---- state ---------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """done, running, failed or waiting; an interrupted run is waiting."""
        locked = is_locked(self.folder / ".lock") or is_locked(self.claim_file)
        state = self.state_of_files()
        return "running" if locked and state != "done" else state

    def state_of_files(self) -> str:
        """:attr:`state`, whoever trains it."""
        if self.result() is not None:
            return "done"
        return "failed" if self.failure_file.exists() else "waiting"

    def result(self) -> dict[str, Any] | None:
        """``result.json`` if this very configuration was trained to the end, else None."""
        try:
            result = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if folder_id(self.folder) == self.id else None

    def is_resumable(self) -> bool:
        return (self.folder / "latest").exists() and folder_id(self.folder) == self.id

    def epochs_done(self) -> int:
        return len(read_metrics(self.folder)) if self.is_resumable() else 0

    # ---- failure -------------------------------------------------------------------------

    def open_log(self) -> IO[str]:
        """The log to be continued, with a line that says where a new process begins."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = self.log.open("a", buffering=1, encoding="utf-8", errors="replace")
        log.write(f"{_LOG_RULE} {_now()}\n")
        return log

    def log_tail(self) -> list[str]:
        """The last lines of the last process."""
        there = self.log.exists()
        text = self.log.read_text(encoding="utf-8", errors="replace") if there else ""
        _, _, last = text.rpartition(_LOG_RULE)
        return last.splitlines()[1:][-LOG_LINES:]

    def mark_failed(self, exit_code: int) -> None:
        """Write :attr:`failure_file`, which :meth:`forget_failure` removes."""
        failure = {"exit_code": exit_code, "tail": self.log_tail(), "finished": _now()}
        write_text(self.failure_file, json.dumps(failure, indent=2) + "\n")

    def failure(self) -> dict[str, Any]:
        """What :meth:`mark_failed` wrote."""
        try:
            return json.loads(self.failure_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"exit_code": None, "tail": self.log_tail()}

    def why_killed(self) -> str:
        """In words; a process that hung has it in its log, others could not say anything."""
        errors = [line for line in self.log_tail() if line.startswith("error:")]
        return (errors or [_WAS_KILLED])[-1]

    def forget_failure(self) -> None:
        self.failure_file.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The line in which a failed run says why."""
        failure = self.failure()
        tail = [line.strip() for line in failure["tail"] if line.strip()]
        errors = [line for line in tail if line.startswith("error:")]
        if not errors and failure["exit_code"] in KILLED:
            return _WAS_KILLED
        return (errors or tail or ["it left no message"])[-1]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# ---- folders ---------------------------------------------------------------------------------


def folder_id(folder: Path) -> str | None:
    """The id of the run in a folder; None if there is none."""
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return identity_of(_leaves(tree))
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return None


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        found |= _leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def find_folders(prefix: str | Path, ids: Iterable[str]) -> dict[str, Path]:
    """Folders below ``prefix`` of the runs ``ids``, whatever they are called.

    Of several one that is complete, or else one with a checkpoint. Runs that were set aside
    (``<name>.1``) do not count.
    """
    missing, found = set(ids), {}
    folders = [
        p.parent for depth in (2, 3) for p in Path(prefix).glob("*/" * depth + "config.yaml")
    ]
    folders = [folder for folder in folders if not folder.suffix[1:].isdigit()]
    folders.sort(key=lambda f: (not (f / "result.json").exists(), not (f / "latest").exists()))
    # What the runner has named itself comes first, so that often no other must be read.
    named = [folder for folder in folders if folder.name.rpartition("-")[2] in missing]
    for folder in (*named, *folders):
        if missing and (id := folder_id(folder)) in missing:
            found[id] = folder
            missing.remove(id)
    return found
