"""What a run leaves in its folder beside its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdistiller.config import dump_cfg

from .events import ScalarWriter
from .files import appending_to, write_text
from .wandb import open_wandb

# The order of mdistiller's worklog and TensorBoard scalars.
LOG_KEYS = ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss")
_RULE = "-" * 25 + "\n"


# One line an epoch: the weights of every step, where LOG.WEIGHTS asks for them.
WEIGHTS_FILE = "weights.jsonl"


class RunRecord:
    """Writes ``config.yaml``, ``metrics.jsonl``, ``worklog.txt`` and TensorBoard events.

    With LOG.WEIGHTS also :data:`WEIGHTS_FILE`.

    Args:
        folder: the run's folder, which exists.
        cfg: the resolved configuration.
        after_epoch: continue after this epoch; records of later ones (written by a run that
            stopped before its checkpoint was complete) are dropped. 0: start afresh.

    Raises:
        CheckpointError: here and in every method, if the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, cfg, after_epoch: int = 0) -> None:
        self.folder = folder
        # The mark of a completed run, which this one is not yet.
        (folder / "result.json").unlink(missing_ok=True)
        write_text(folder / "config.yaml", dump_cfg(cfg))
        self._keep(after_epoch)
        self._events = ScalarWriter(folder / "train.events")
        self._wandb = open_wandb(cfg, folder) if cfg.LOG.WANDB else None

    def _keep(self, after_epoch: int) -> None:
        """Cut the text logs back to the epochs up to ``after_epoch``."""
        lines = [e for e in read_metrics(self.folder) if e["epoch"] <= after_epoch]
        weights = [e for e in read_lines(self.folder / WEIGHTS_FILE) if e["epoch"] <= after_epoch]
        self._metrics = self.folder / "metrics.jsonl"
        self._worklog = self.folder / "worklog.txt"
        # Whole files: a kill in between must not lose the epochs that are kept.
        write_text(self._metrics, "".join(json.dumps(e) + "\n" for e in lines))
        write_text(self._worklog, "".join(_worklog_entry(e) for e in lines))
        self._weights = self.folder / WEIGHTS_FILE
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
            _append(self._weights, json.dumps(line) + "\n")
        _append(self._metrics, json.dumps(entry) + "\n")
        _append(self._worklog, _worklog_entry(entry))
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
        _append(self._worklog, f"best_acc\t{result['best_top1']:.2f}")
        write_text(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
        if self._wandb:
            self._wandb.summary["best_acc"] = result["best_top1"]

    def close(self) -> None:
        self._events.close()
        if self._wandb:
            self._wandb.finish()


class NoRecord:
    """The interface of :class:`RunRecord` in a process that leaves the writing to another one."""

    def __init__(self, folder: Path, cfg, after_epoch: int = 0) -> None:
        pass

    def epoch(
        self, entry: dict[str, Any], weights: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        pass

    def scalars(self, values: dict[str, float], step: int) -> None:
        pass

    def finish(self, result: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``metrics.jsonl``, without a last line that a kill cut short."""
    return read_lines(folder / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of ``path`` up to the first that is damaged; none if it is missing."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _append(path: Path, text: str) -> None:
    with appending_to(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _worklog_entry(entry: dict[str, Any]) -> str:
    lines = [f"epoch: {entry['epoch']}\n", f"lr: {entry['lr']:.2f}\n"]
    lines += [f"{key}: {entry[key]:.2f}\n" for key in LOG_KEYS]
    return _RULE + "".join(lines) + _RULE
