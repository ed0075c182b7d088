"""A run's checkpoints: what they hold, how they are written, and how a run continues from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mdistiller.config import runs_like
from mdistiller.console import log
from mdistiller.engine.batch import Trainable
from mdistiller.engine.epoch import EpochState
from mdistiller.engine.meters import DeviceMeter
from mdistiller.errors import CheckpointError
from mdistiller.models.checkpoints import read_checkpoint
from mdistiller.seeding import global_state, set_global_state

from .files import whole_file
from .resume import (
    refuse_changes,
    refuse_changes_within_an_epoch,
    refuse_other_teacher,
    relevant_config,
    teacher_reference,
)

# Keys of the wrapped distiller in mdistiller's files, which are kept.
WRAPPER = "module."

# With one of these changed, what the optimizer remembers is another one's.
_OTHER_OPTIMIZER = ("SOLVER.TYPE", "SOLVER.TRAINER")


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
        entry: the line of ``metrics.jsonl`` of the last complete epoch, if it is known.
        teacher: see :func:`~mdistiller.engine.rundir.resume.teacher_reference`.
    """

    def __init__(self, trainer: Trainable, clock: Callable[[], float]) -> None:
        self._trainer, self._clock = trainer, clock
        self.teacher = teacher_reference(trainer.cfg, trainer.distiller)
        self.best = (-1.0, 0)
        self.entry: dict[str, Any] | None = None
        self._seconds_before, self._start = 0.0, clock()

    @property
    def seconds(self) -> float:
        """Time spent on the run by its trainer's clock, interruptions left out."""
        return self._seconds_before + self._clock() - self._start

    def compare(self, epoch: int, top1: float) -> float:
        """The best top-1 after ``epoch``; of two equal ones the later is the best epoch."""
        if top1 >= self.best[0]:
            self.best = (top1, epoch)
        return self.best[0]

    def save_epoch(self, entry: dict[str, Any], window: DeviceMeter) -> None:
        """After a complete epoch.

        Args:
            entry: its line of ``metrics.jsonl``.
            window: diagnostics that are not written yet.
        """
        trainer, self.entry = self._trainer, entry
        if not trainer.world.is_writer:
            return
        epoch = entry["epoch"]
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

    def save_step(self, epoch: int, done: EpochState) -> None:
        """Within ``epoch``, of which ``done`` is done."""
        trainer = self._trainer
        by_process = trainer.world.gather(done.state_dict())
        with trainer.world.fail_together():
            if trainer.world.is_writer:
                state = {**self._state(epoch - 1), "step": done.steps, "sums": by_process}
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
            "random_state": random_state(trainer.device),
            "trainer": trainer.extra_state(),
            "config": relevant_config(trainer.cfg, trainer.world.size),
            "teacher": self.teacher,
            "entry": self.entry,
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
        trainer, path = self._trainer, self._trainer.log_path / "latest"
        # One process reads for all, which may be on machines that do not share a disk.
        state = trainer.world.from_writer(lambda: _read(path))
        if state is None:
            log(f"{path}: no checkpoint yet, so this run starts from the beginning")
            for other in runs_like(trainer.cfg):
                log(f"{other} holds a run of the same configuration under another name", "WARN")
            return 0, EpochState()
        changed: list[str] = []
        # mdistiller's own checkpoints have neither of the two.
        if isinstance(state, dict) and "config" in state:
            old, new = state["config"], relevant_config(trainer.cfg, trainer.world.size)
            changed = refuse_changes(old, new, allow_changes)
            if "sums" in state:
                refuse_changes_within_an_epoch(changed, state["epoch"] + 1, state["step"])
            for change in changed:
                log(f"changed since the checkpoint: {change}", "WARN")
            refuse_other_teacher(state["teacher"], self.teacher)
        try:
            return self._restore(tree_map_only(Tensor, self._to_device, state), changed)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} does not fit this configuration ({reason}); "
                "resume with the one in config.yaml beside it"
            ) from None

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._trainer.device)

    def _restore(self, state: dict[str, Any], changed: list[str]) -> tuple[int, EpochState]:
        trainer, done = self._trainer, EpochState()
        trainer.distiller.load_state_dict(unwrap_keys(state["model"]))
        self._restore_optimizer(state["optimizer"], changed)
        # mdistiller's own checkpoints have no more than these; the rest is this project's.
        epoch = int(state["epoch"])
        self.best = (float(state["best_acc"]), state.get("best_epoch", 0))
        self.entry = state.get("entry")
        self._seconds_before, self._start = state.get("seconds", 0.0), self._clock()
        trainer.load_extra_state(state.get("trainer", {}))
        if "sums" in state:
            done.load_state_dict(state["sums"][trainer.world.rank])
        elif "window" in state:
            done.window.load_state_dict(state["window"])
        if "random_state" in state:
            set_random_state(state["random_state"], trainer.device)
        return epoch, done

    def _restore_optimizer(self, state: dict[str, Any], changed: list[str]) -> None:
        """Continue from ``state``, with this configuration's settings where some have changed."""
        optimizer = self._trainer.optimizer
        if any(change.startswith(_OTHER_OPTIMIZER) for change in changed):
            log("the optimizer is another one, so its moving averages begin anew", "WARN")
            return
        own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(state)
        if changed:
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)


def _read(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, on the CPU; None if there is none."""
    return read_checkpoint(path, map_location="cpu") if path.exists() else None


def save_checkpoint(obj: Any, path: str | Path) -> None:
    """Write ``obj`` with ``torch.save``, see :func:`~mdistiller.engine.rundir.files.whole_file`.

    Raises:
        CheckpointError: the file cannot be written; an older file at ``path`` is untouched.
    """
    with whole_file(Path(path)) as file:
        torch.save(obj, file)


def wrap_keys(state: dict[str, Any]) -> dict[str, Any]:
    """A distiller's state dict under the keys of mdistiller's files."""
    return {WRAPPER + key: value for key, value in state.items()}


def unwrap_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`wrap_keys`; keys without the prefix are left as they are."""
    return {key.removeprefix(WRAPPER): value for key, value in state.items()}


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the global random generators of the host and of ``device``.

    Made of tensors and plain types. Only this process's GPU: a run may continue where there are
    fewer of them.
    """
    state = global_state()
    kind, keys, position, has_gauss, gauss = state["numpy"]
    version, internal, next_gauss = state["python"]
    found = {
        "torch": state["torch"],
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": (version, torch.tensor(internal, dtype=torch.int64), next_gauss),
    }
    if device.type == "cuda":
        found["cuda"] = [torch.cuda.get_rng_state(device)]
    return found


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore :func:`random_state`; one without a state of ``device`` leaves its generator."""
    kind, keys, *rest = state["numpy"]
    version, internal, next_gauss = state["python"]
    set_global_state(
        {
            "torch": state["torch"].cpu(),
            "numpy": (kind, keys.cpu().numpy().astype(np.uint32), *rest),
            "python": (version, tuple(internal.tolist()), next_gauss),
        }
    )
    if device.type == "cuda" and state.get("cuda"):
        # Checkpoints of earlier versions hold the states of all GPUs of their machine.
        states, own = state["cuda"], torch.cuda.current_device()
        index = own if device.index is None else device.index
        torch.cuda.set_rng_state(states[min(index, len(states) - 1)].cpu(), device)
