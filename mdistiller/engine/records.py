"""What a run leaves in its folder beside its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from mdistiller.errors import MdistillerError

from .cfg import dump_cfg
from .wandb import open_wandb

# The order of mdistiller's worklog and TensorBoard scalars.
LOG_KEYS = ("train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss")
_RULE = "-" * 25 + "\n"


class RunRecord:
    """Writes ``config.yaml``, ``metrics.jsonl``, ``worklog.txt`` and TensorBoard events.

    Args:
        folder: the run's folder, created if missing.
        cfg: the resolved configuration.
        after_epoch: continue after this epoch; records of later ones (written by a run that
            stopped before its checkpoint was complete) are dropped. 0: start afresh.
    """

    def __init__(self, folder: Path, cfg, after_epoch: int = 0) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(dump_cfg(cfg))
            self._keep(after_epoch)
        except OSError as error:
            raise MdistillerError(
                f"cannot write into {folder} ({error}); set LOG.PREFIX to another folder"
            ) from None
        self._events = SummaryWriter(str(folder / "train.events"), purge_step=after_epoch + 1)
        self._wandb = open_wandb(cfg, folder) if cfg.LOG.WANDB else None

    def _keep(self, after_epoch: int) -> None:
        """Cut the text logs back to the epochs up to ``after_epoch``."""
        lines = [e for e in read_metrics(self.folder) if e["epoch"] <= after_epoch]
        self._metrics = self.folder / "metrics.jsonl"
        self._metrics.write_text("".join(json.dumps(e) + "\n" for e in lines))
        self._worklog = self.folder / "worklog.txt"
        self._worklog.write_text("".join(_worklog_entry(e) for e in lines))

    def epoch(self, entry: dict[str, Any]) -> None:
        """Add one epoch; ``entry`` has "epoch", "lr" and the :data:`LOG_KEYS` at least."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        with self._worklog.open("a") as file:
            file.write(_worklog_entry(entry))
        for key in LOG_KEYS:
            self._events.add_scalar(key, entry[key], entry["epoch"])
        self._events.flush()
        if self._wandb:
            self._wandb.log({"current lr": entry["lr"], **entry})

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add TensorBoard scalars at a training step (counted from 1 over the whole run)."""
        for key, value in values.items():
            self._events.add_scalar(key, value, step)

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, the mark of a completed run, and the worklog's last line."""
        with self._worklog.open("a") as file:
            file.write(f"best_acc\t{result['best_top1']:.2f}")
        temporary = self.folder / ".result.json.tmp"
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        temporary.replace(self.folder / "result.json")
        if self._wandb:
            self._wandb.summary["best_acc"] = result["best_top1"]

    def close(self) -> None:
        self._events.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``metrics.jsonl``, without a last line that a kill cut short."""
    entries = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _worklog_entry(entry: dict[str, Any]) -> str:
    lines = [f"epoch: {entry['epoch']}\n", f"lr: {entry['lr']:.2f}\n"]
    lines += [f"{key}: {entry[key]:.2f}\n" for key in LOG_KEYS]
    return _RULE + "".join(lines) + _RULE
