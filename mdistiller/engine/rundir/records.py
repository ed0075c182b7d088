"""What a run leaves in its folder beside its checkpoints: text, TensorBoard events, wandb."""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from mdistiller.config import Config, dump_cfg
from mdistiller.console import log
from mdistiller.errors import UNSUPPORTED, ConfigError

from .files import append_text, appending_to, write_text

# The order of mdistiller's worklog and TensorBoard scalars.
LOG_KEYS = ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss")
_RULE = "-" * 25 + "\n"

# One line an epoch: the weights of every step, where LOG.WEIGHTS asks for them.
WEIGHTS_FILE = "weights.jsonl"

WANDB_MODES = ("online", "offline", "disabled", "shared")
# How long a training waits for the server of Weights & Biases, at its start and at its end.
WANDB_SECONDS = 30


class RunRecord:
    """Writes ``config.yaml``, ``metrics.jsonl``, ``worklog.txt`` and TensorBoard events.

    With LOG.WEIGHTS also :data:`WEIGHTS_FILE`.

    Args:
        folder: the run's folder, which exists.
        cfg: the resolved configuration.
        after_epoch: continue after this epoch; records of later ones (written by a run that
            stopped before its checkpoint was complete) are dropped. 0: start afresh.
        last_entry: what the checkpoint says of that epoch, if it says anything.

    Raises:
        CheckpointError: here and in every method, if the disk is full or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        cfg: Config,
        after_epoch: int = 0,
        last_entry: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        # The mark of a completed run, which this one is not yet.
        (folder / "result.json").unlink(missing_ok=True)
        write_text(folder / "config.yaml", dump_cfg(cfg))
        self._metrics = folder / "metrics.jsonl"
        self._worklog = folder / "worklog.txt"
        self._weights = folder / WEIGHTS_FILE
        self._keep(after_epoch, last_entry)
        # First, for it may refuse what the environment says.
        self._wandb = WandbRun(cfg, folder) if cfg.LOG.WANDB else None
        self._events = ScalarWriter(folder / "train.events")

    def _keep(self, after_epoch: int, last_entry: dict[str, Any] | None) -> None:
        """Cut the text logs back to the epochs up to ``after_epoch``."""
        lines = [e for e in read_metrics(self.folder) if e["epoch"] <= after_epoch]
        weights = [e for e in read_lines(self.folder / WEIGHTS_FILE) if e["epoch"] <= after_epoch]
        found = {entry["epoch"] for entry in lines}
        if last_entry and last_entry["epoch"] == after_epoch not in found:
            lines.append(last_entry)
        missing = [epoch for epoch in range(1, after_epoch + 1) if epoch not in found]
        if missing:
            log(
                f"{self._metrics} lacks {len(missing)} of the {after_epoch} epochs before, so "
                f"their accuracies (from epoch {missing[0]} on) cannot be shown; training goes on",
                "WARN",
            )
        # Whole files: a kill in between must not lose the epochs that are kept.
        write_text(self._metrics, "".join(json.dumps(e) + "\n" for e in lines))
        write_text(self._worklog, "".join(_worklog_entry(e) for e in lines))
        if self._weights.exists():
            write_text(self._weights, "".join(json.dumps(e) + "\n" for e in weights))

    def epoch(
        self, entry: dict[str, Any], weights: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Add one epoch.

        Args:
            entry: has "epoch", "lr" and the :data:`LOG_KEYS` at least.
            weights: of every step, by loss; nothing is written if there are none.
        """
        if weights:
            line = {"epoch": entry["epoch"], **weights}
            append_text(self._weights, json.dumps(line) + "\n")
        append_text(self._metrics, json.dumps(entry) + "\n")
        append_text(self._worklog, _worklog_entry(entry))
        for key in LOG_KEYS:
            self._events.add(key, entry[key], entry["epoch"])
        self._events.flush()
        if self._wandb:
            self._wandb.log({"current lr": entry["lr"], **entry})

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add TensorBoard scalars at a training step (counted from 1 over the whole run)."""
        for key, value in values.items():
            self._events.add(key, value, step)

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, the mark of a completed run, and the worklog's last line."""
        append_text(self._worklog, f"best_acc\t{result['best_top1']:.2f}")
        write_text(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
        if self._wandb:
            self._wandb.summarise("best_acc", result["best_top1"])

    def close(self) -> None:
        self._events.close()
        if self._wandb:
            self._wandb.close()


class NoRecord:
    """Stands for a :class:`RunRecord` in a process that leaves the writing to another one."""

    def __init__(self, *args: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``metrics.jsonl``, see :func:`read_lines`."""
    return [entry for entry in read_lines(folder / "metrics.jsonl") if "epoch" in entry]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of ``path``; none if it is missing.

    A damaged line is left out with a warning, the sound ones after it are kept. Nothing is said
    of a last line that a kill cut short.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    entries, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:  # no JSON, or not UTF-8
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warnings.warn(
            f"{path}: line {damaged[0]}{more} is damaged and left out, the other lines are kept",
            stacklevel=2,
        )
    return entries


def _worklog_entry(entry: dict[str, Any]) -> str:
    lines = [f"epoch: {entry['epoch']}\n", f"lr: {entry['lr']:.2f}\n"]
    lines += [f"{key}: {entry[key]:.2f}\n" for key in LOG_KEYS]
    return _RULE + "".join(lines) + _RULE


class ScalarWriter:
    """Adds TensorBoard scalars to an event file of its own in ``folder``, created if missing.

    Not tensorboardX's SummaryWriter, which writes from a thread: on a full disk that thread dies
    and the next flush waits for it for ever. Here the error reaches the caller. A resumed run
    writes the steps since its checkpoint again, with the same values.

    Raises:
        CheckpointError: in every method, if the disk is full or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with appending_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # With the process id and a number, for two runs may start in one second.
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
            file = next(f for n in count() if not (f := folder / f"{name}.{n}").exists())
            self._records = RecordWriter(str(file))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, name: str, value: float, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        with appending_to(self._folder):
            self._records.write(event.SerializeToString())

    def flush(self) -> None:
        with appending_to(self._folder):
            try:
                self._records.flush()
            except OSError as error:  # it also asks the disk, of which append_text has warned
                if error.errno not in UNSUPPORTED:
                    raise

    def close(self) -> None:
        """Close the file; silent on a full disk, of which :meth:`flush` has told."""
        with suppress(OSError):
            self._records.close()


class WandbRun:
    """A run of Weights & Biases, which never ends a training, holds it up or asks for a login.

    It stays on this machine if nobody is logged in or the server does not answer. A resumed
    training continues the same run: its id is kept in the folder.

    Raises:
        ConfigError: wandb is not installed, or WANDB_MODE is none of its modes.
    """

    def __init__(self, cfg: Config, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "LOG.WANDB is True but wandb is not installed; run pip install wandb, "
                "or leave LOG.WANDB False"
            ) from None
        asked = os.environ.get("WANDB_MODE", "")
        if asked and asked not in WANDB_MODES:
            raise ConfigError(
                f"the environment's WANDB_MODE is {asked!r}; set it to one of "
                f"{', '.join(WANDB_MODES)}, or leave LOG.WANDB False"
            )
        # Optional, and its types change from release to release.
        self._wandb: Any = wandb
        self._run: Any = None
        file = folder / "wandb_id"
        if not file.exists():
            write_text(file, secrets.token_hex(8))
        self._arguments = {
            "project": cfg.EXPERIMENT.PROJECT,
            "name": folder.name,
            "config": cfg.leaves(),
            "dir": str(folder),
            "id": file.read_text().strip(),
        }
        mode = asked or ("online" if _logged_in(wandb) else "offline")
        if not self._open(mode) and mode != "offline":
            self._open("offline")

    def _open(self, mode: str) -> bool:
        limits = {"init_timeout": WANDB_SECONDS, "finish_timeout": WANDB_SECONDS}
        try:
            known = getattr(self._wandb.Settings, "model_fields", limits)
            settings = self._wandb.Settings(**{k: v for k, v in limits.items() if k in known})
            # Offline there is nothing to resume from; the server joins parts with one id.
            more = {"resume": "allow"} if mode in ("online", "shared") else {}
            self._run = self._wandb.init(mode=mode, settings=settings, **more, **self._arguments)
        except Exception as error:  # whatever a service that is elsewhere comes up with
            self._give_up(error, "its data stay on this machine")
        return self._run is not None

    def log(self, entry: dict[str, Any]) -> None:
        self._attempt(lambda run: run.log(entry))

    def summarise(self, name: str, value: float) -> None:
        self._attempt(lambda run: run.summary.update({name: value}))

    def close(self) -> None:
        self._attempt(lambda run: run.finish())

    def _attempt(self, action: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._give_up(error, "nothing more is sent there")

    def _give_up(self, error: Exception, consequence: str) -> None:
        self._run = None
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        log(f"Weights & Biases failed ({reason}): {consequence}, training goes on", "WARN")


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.api.api_key)
    except Exception:  # a damaged netrc or settings file
        return False
