"""The training loop, and the part of it that a weighting method replaces."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller
from mdistiller.errors import CheckpointError, InterruptedRun
from mdistiller.models.teachers import read_checkpoint

from .checkpoint import (
    random_state,
    save_checkpoint,
    set_random_state,
    unwrap_keys,
    wrap_keys,
)
from .finite import FiniteWatch
from .folder import open_folder
from .optim import build_optimizer
from .precision import prepare
from .progress import Progress
from .records import RunRecord, read_metrics
from .result import run_result
from .utils import DeviceMeter, accuracy, adjust_learning_rate, validate

# What a loader's tuple holds, in this order; the last ones only where a method needs them.
BATCH_KEYS = ("image", "target", "index", "contrastive_index")

# Steps between two looks at the running sums (a look waits for the device).
READ_EVERY = 20


@dataclass
class StepResult:
    """What :meth:`BaseTrainer.backward` reports of one step; all tensors stay on the device.

    Attributes:
        logits: the student's [B, C] on the current batch.
        losses: the distiller's losses by name, scalar or shape [1].
        diagnostics: scalars whose epoch means go into the logs.
        gradients: scalars by description that must be finite, e.g. a gradient's norm.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


class BaseTrainer:
    """Trains a distiller with the sum of its losses.

    A weighting method subclasses it and replaces :meth:`batches` (what a step sees) and
    :meth:`backward` (how the losses become gradients); a method with state of its own adds
    :meth:`extra_state` and :meth:`load_extra_state`.

    Args:
        experiment_name: the run's folder below ``cfg.LOG.PREFIX``.
        distiller: the student with its losses; moved to the configured device.
        train_loader: yields tuples of :data:`BATCH_KEYS`; reshuffles by itself.
        val_loader: yields (image, target).
        cfg: the resolved configuration.
    """

    # Written to the logs below this name, e.g. "crossbatch".
    diagnostics_name = "diagnostics"

    # Whether the method treats the distillation loss apart, so that there must be one.
    needs_distillation_loss = False

    def __init__(
        self,
        experiment_name: str,
        distiller: Distiller,
        train_loader: Iterable,
        val_loader: Iterable,
        cfg: Any,
    ) -> None:
        self.cfg = cfg
        self.device = resolve_device(cfg.SOLVER.DEVICE)
        self.distiller = distiller.to(self.device)
        self._image_layout = prepare(self.distiller, cfg, self.device)
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.optimizer = self.init_optimizer(cfg)
        self.experiment_name = experiment_name
        self.log_path = Path(cfg.LOG.PREFIX) / experiment_name
        self.facts: dict[str, Any] = {}
        self.best_acc = -1.0
        self.best_epoch = 0
        self._seconds = 0.0

    # ---- what a method may replace -------------------------------------------------------

    def init_optimizer(self, cfg: Any) -> Optimizer:
        return build_optimizer(self.distiller.get_learnable_parameters(), cfg)

    def batches(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The keyword arguments of the distiller for every step of ``epoch``."""
        for data in epoch_of(self.train_loader, epoch):
            yield self.to_device(data)

    def backward(self, batch: dict[str, Any], epoch: int) -> StepResult:
        """Leave the gradient of one step in the parameters' ``grad``, which are None before."""
        logits, losses = self.distiller(**batch, epoch=epoch)
        sum(loss.mean() for loss in losses.values()).backward()
        return StepResult(logits, losses, gradients={"gradient": self.gradient_norm()})

    def extra_state(self) -> dict[str, Any]:
        """State of the method that a resumed run needs; tensors and plain types only."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`extra_state`."""

    # ---- helpers for them ----------------------------------------------------------------

    def to_device(self, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
        moved = [x.to(self.device, non_blocking=True) for x in data]
        batch = dict(zip(BATCH_KEYS, moved, strict=False))
        batch["image"] = batch["image"].to(self._image_dtype, memory_format=self._image_layout)
        return batch

    @property
    def _image_dtype(self) -> torch.dtype:
        return next(self.distiller.student.parameters()).dtype

    def gradient_norm(self) -> Tensor:
        """Norm over all gradients that the optimizer is about to use."""
        return torch.nn.utils.get_total_norm(
            [
                p.grad
                for group in self.optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
        )

    # ---- the loop ------------------------------------------------------------------------

    def train(self, resume: bool = False) -> dict[str, Any]:
        """Train up to ``cfg.SOLVER.EPOCHS`` and return what ``result.json`` says.

        Args:
            resume: continue the run in :attr:`log_path` after its latest checkpoint. Otherwise
                a run found there is set aside, under the same name with a number.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
            CheckpointError: nothing to resume, a damaged file, or a disk that is full.
            InterruptedRun: stopped by Ctrl-C; :attr:`log_path` holds the last full epoch.
        """
        lock = open_folder(self.log_path, keep=resume)
        try:
            start = self._load_latest() if resume else 0
            return self._train_from(start)
        finally:
            lock.release()

    def _train_from(self, done: int) -> dict[str, Any]:
        epochs = self.cfg.SOLVER.EPOCHS
        record = RunRecord(self.log_path, self.cfg, after_epoch=done)
        progress = Progress(epochs, len(self.train_loader), first_epoch=done + 1)
        epoch = done + 1
        try:
            for epoch in range(done + 1, epochs + 1):
                began = time.monotonic()
                entry = self._train_epoch(epoch, record, progress)
                self._seconds += time.monotonic() - began
                record.epoch(entry)
                self._save(epoch)
                progress.end_epoch(entry)
            result = self._result()
            record.finish(result)
            return result
        except KeyboardInterrupt:
            advice = (
                f"epoch {epoch - 1} is saved in {self.log_path}, continue with --resume"
                if epoch > 1
                else "no epoch was complete, so there is nothing to resume"
            )
            raise InterruptedRun(f"interrupted in epoch {epoch}; {advice}") from None
        finally:
            progress.close()
            record.close()

    def _train_epoch(self, epoch: int, record: RunRecord, progress: Progress) -> dict[str, Any]:
        """One pass over the training set and one over the validation set."""
        lr = adjust_learning_rate(epoch, self.cfg, self.optimizer)
        began = time.monotonic()
        progress.start_epoch(epoch)
        self.distiller.train()
        meter, diagnostics, watch = DeviceMeter(), DeviceMeter(), FiniteWatch()
        window = DeviceMeter()
        images = steps = 0
        for steps, batch in enumerate(self.batches(epoch), 1):
            result = self.train_iter(batch, epoch)
            n = batch["image"].shape[0]
            images += n
            meter.update(self._measure(result, batch["target"]), n)
            diagnostics.update(result.diagnostics)
            window.update(result.diagnostics)
            watch.update({**result.losses, **result.gradients}, steps)
            if steps % READ_EVERY == 0:
                watch.check(epoch)
                progress.step(steps, images, meter.averages())
            self._write_window(window, record, epoch, steps)
        watch.check(epoch)
        seconds = time.monotonic() - began
        top1, top5, loss = validate(self.val_loader, self.distiller)
        if top1 >= self.best_acc:
            self.best_acc, self.best_epoch = top1, epoch
        entry = {
            "epoch": epoch,
            "lr": lr,
            **meter.averages(),
            "test_acc": top1,
            "test_acc_top5": top5,
            "test_loss": loss,
            "best_acc": self.best_acc,
            "steps": steps,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if means := diagnostics.averages():
            entry[self.diagnostics_name] = means
        return entry

    def train_iter(self, batch: dict[str, Any], epoch: int) -> StepResult:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        result = self.backward(batch, epoch)
        self.optimizer.step()
        return result

    @staticmethod
    def _measure(result: StepResult, target: Tensor) -> dict[str, Tensor]:
        top1, top5 = accuracy(result.logits.detach(), target, topk=(1, 5))
        losses = {name: loss.detach().mean() for name, loss in result.losses.items()}
        return {
            "train_loss": sum(losses.values()),
            "train_acc": top1,
            "train_acc_top5": top5,
            **{f"train_{name}": loss for name, loss in losses.items()},
        }

    def _write_window(self, window: DeviceMeter, record: RunRecord, epoch: int, step: int) -> None:
        """Every TENSORBOARD_FREQ steps, the diagnostics' means over these steps."""
        total = (epoch - 1) * len(self.train_loader) + step
        if total % self.cfg.LOG.TENSORBOARD_FREQ:
            return
        means = window.averages()
        record.scalars({f"{self.diagnostics_name}/{k}": v for k, v in means.items()}, total)
        window.reset()

    # ---- checkpoints ---------------------------------------------------------------------

    def _save(self, epoch: int) -> None:
        state = {
            "epoch": epoch,
            "model": wrap_keys(self.distiller.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "best_acc": self.best_acc,
            "best_epoch": self.best_epoch,
            "seconds": self._seconds,
            "random_state": random_state(),
            "trainer": self.extra_state(),
        }
        student = {"model": self.distiller.student.state_dict()}
        names = ["latest"]
        if epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            names.append(f"epoch_{epoch}")
        if self.best_epoch == epoch:
            names.append("best")
        # "latest" last: once it is there, everything else of this epoch is there too.
        for name in reversed(names):
            save_checkpoint(student, self.log_path / f"student_{name.removeprefix('epoch_')}")
            save_checkpoint(state, self.log_path / name)

    def _load_latest(self) -> int:
        """Restore the run's state; returns the epoch it had completed."""
        path = self.log_path / "latest"
        if not path.exists():
            raise CheckpointError(f"{path}: no checkpoint to resume from; run without --resume")
        state = read_checkpoint(path, map_location=self.device)
        try:
            self.distiller.load_state_dict(unwrap_keys(state["model"]))
            self.optimizer.load_state_dict(state["optimizer"])
            epoch, self.best_acc = int(state["epoch"]), float(state["best_acc"])
            # mdistiller's own checkpoints end here; the rest is this project's.
            self.best_epoch = state.get("best_epoch", 0)
            self._seconds = state.get("seconds", 0.0)
            self.load_extra_state(state.get("trainer", {}))
            if "random_state" in state:
                set_random_state(state["random_state"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} does not fit this configuration ({reason}); "
                "resume with the one in config.yaml beside it"
            ) from None
        return epoch

    def _result(self) -> dict[str, Any]:
        return run_result(
            self.cfg,
            self.device,
            name=self.experiment_name,
            history=read_metrics(self.log_path),
            best=(self.best_acc, self.best_epoch),
            seconds=self._seconds,
            **self.facts,
        )


def epoch_of(loader: Iterable, epoch: int) -> Iterable:
    """``loader``, set to ``epoch`` if it derives its order from that (a plain list does not)."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    return loader
