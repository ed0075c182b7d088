"""What a run's checkpoints hold, and how a run continues from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from mdistiller.config import runs_like
from mdistiller.console import say
from mdistiller.distillers import Distiller
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.engine.epoch import EpochState
from mdistiller.engine.meters import DeviceMeter
from mdistiller.engine.runtime.clock import Clock
from mdistiller.engine.runtime.distributed import World
from mdistiller.errors import CheckpointError
from mdistiller.models.checkpoints import read_checkpoint

from .checkpoint import random_state, save_checkpoint, set_random_state, unwrap_keys, wrap_keys
from .resume import refuse_changes, refuse_other_teacher, relevant_config, teacher_reference


class Trainable(Protocol):
    """What the loop and its checkpoints ask of a trainer."""

    cfg: Any
    device: torch.device
    world: World
    distiller: Distiller
    optimizer: Optimizer
    train_loader: Iterable
    val_loader: Iterable
    experiment_name: str
    log_path: Path
    diagnostics_name: str
    extra_results: dict[str, Any]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...
    def step(self, batch: Batch, epoch: int) -> StepResult: ...
    def extra_state(self) -> dict[str, Any]: ...
    def load_extra_state(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of one run, in its trainer's ``log_path``.

    ``latest`` is the whole state after the last complete epoch, or after a step of the next
    one; it alone is read. ``best`` and ``epoch_<N>`` are copies of it, ``student_*`` the
    student's weights alone, all of complete epochs.

    Args:
        trainer: before its first step, so that its teacher is as it was loaded.
        clock: tells the seconds that the run takes.

    Attributes:
        best: the best test top-1 so far in percent, and its epoch.
        teacher: see :func:`~mdistiller.engine.rundir.resume.teacher_reference`.
    """

    def __init__(self, trainer: Trainable, clock: Clock) -> None:
        self._trainer, self._clock = trainer, clock
        self.teacher = teacher_reference(trainer.cfg, trainer.distiller.teacher)
        self.best = (-1.0, 0)
        self._seconds_before, self._start = 0.0, clock()

    @property
    def seconds(self) -> float:
        """Time spent on the run by its trainer's clock, interruptions left out."""
        return self._seconds_before + self._clock() - self._start

    def compare(self, epoch: int, top1: float) -> tuple[float, int]:
        """:attr:`best` after ``epoch``, of two equal ones the later."""
        if top1 >= self.best[0]:
            self.best = (top1, epoch)
        return self.best

    def save_epoch(self, epoch: int, window: DeviceMeter) -> None:
        """After ``epoch`` is complete.

        Args:
            window: diagnostics that are not written yet.
        """
        trainer = self._trainer
        if not trainer.world.is_writer:
            return
        state = {**self._state(epoch), "window": window.state_dict()}
        student = {"model": trainer.distiller.student.state_dict()}
        names = ["latest"]
        if epoch % trainer.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            names.append(f"epoch_{epoch}")
        if self.best[1] == epoch:
            names.append("best")
        # "latest" last: once it is there, everything else of this epoch is there too.
        for name in reversed(names):
            save_checkpoint(student, trainer.log_path / f"student_{name.removeprefix('epoch_')}")
            save_checkpoint(state, trainer.log_path / name)

    def save_step(self, epoch: int, sums: EpochState) -> None:
        """Within ``epoch``, of which ``sums`` is done."""
        trainer = self._trainer
        by_process = trainer.world.gather(sums.state_dict())
        with trainer.world.together():
            if trainer.world.is_writer:
                state = {**self._state(epoch - 1), "step": sums.steps, "sums": by_process}
                save_checkpoint(state, trainer.log_path / "latest")

    def _state(self, epoch: int) -> dict[str, Any]:
        """The run after ``epoch`` complete epochs; keys up to "best_acc" are mdistiller's."""
        trainer = self._trainer
        return {
            "epoch": epoch,
            "model": wrap_keys(trainer.distiller.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "best_acc": self.best[0],
            "best_epoch": self.best[1],
            "seconds": self.seconds,
            "random_state": random_state(),
            "trainer": trainer.extra_state(),
            "config": relevant_config(trainer.cfg, trainer.world.size),
            "teacher": self.teacher,
        }

    def load(self, allow_changes: bool) -> tuple[int, EpochState]:
        """Restore the run's state.

        Args:
            allow_changes: accept another configuration than the checkpoint's.

        Returns:
            The last complete epoch, 0 if there is no checkpoint, and what is done of the next.

        Raises:
            CheckpointError: the file is damaged or of another run.
            ConfigError: the configuration has changed.
        """
        path = self._trainer.log_path / "latest"
        if not path.exists():
            say(f"{path}: no checkpoint yet, so this run starts from the beginning")
            for other in runs_like(self._trainer.cfg):
                say(f"{other} holds a run of the same configuration under another name", "WARN")
            return 0, EpochState()
        state = read_checkpoint(path, map_location=self._trainer.device)
        # mdistiller's own checkpoints have neither of the two.
        if isinstance(state, dict) and "config" in state:
            new = relevant_config(self._trainer.cfg, self._trainer.world.size)
            for change in refuse_changes(state["config"], new, allow_changes):
                say(f"changed since the checkpoint: {change}", "WARN")
            refuse_other_teacher(state["teacher"], self.teacher)
        try:
            return self._restore(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} does not fit this configuration ({reason}); "
                "resume with the one in config.yaml beside it"
            ) from None

    def _restore(self, state: dict[str, Any]) -> tuple[int, EpochState]:
        trainer, sums = self._trainer, EpochState()
        trainer.distiller.load_state_dict(unwrap_keys(state["model"]))
        trainer.optimizer.load_state_dict(state["optimizer"])
        # mdistiller's own checkpoints have no more than these; the rest is this project's.
        epoch = int(state["epoch"])
        self.best = (float(state["best_acc"]), state.get("best_epoch", 0))
        self._seconds_before, self._start = state.get("seconds", 0.0), self._clock()
        trainer.load_extra_state(state.get("trainer", {}))
        if "sums" in state:
            if len(state["sums"]) != trainer.world.size:
                raise ValueError(f"within an epoch of {len(state['sums'])} processes")
            sums.load_state_dict(state["sums"][trainer.world.rank])
        elif "window" in state:
            sums.window.load_state_dict(state["window"])
        if "random_state" in state:
            set_random_state(state["random_state"])
        return epoch, sums
