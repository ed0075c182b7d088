"""The training loop, and the part of it that a weighting method replaces."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller
from mdistiller.errors import InterruptedRun

from .distributed import World, piece_of, share_of
from .epoch import EpochSums, StepResult, epoch_of
from .folder import open_folder
from .optim import build_optimizer
from .precision import prepare
from .progress import Progress
from .records import NoRecord, RunRecord, read_metrics
from .result import run_result
from .saving import Checkpoints
from .signals import StopDuringValidation, StopRequest
from .utils import adjust_learning_rate, validate

# What a loader's tuple holds, in this order; the last ones only where a method needs them.
BATCH_KEYS = ("image", "target", "index", "contrastive_index")

# Steps between two looks at the running sums (a look waits for the device).
READ_EVERY = 20


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

    # Whether the class's own ``backward`` works on a piece of a batch (:meth:`scaled`).
    data_parallel = True

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
        self.world = World()
        self.train_loader, self.val_loader = (
            piece_of(loader, self) for loader in (train_loader, val_loader)
        )
        self.optimizer = self.init_optimizer(cfg)
        self.experiment_name = experiment_name
        self.log_path = Path(cfg.LOG.PREFIX) / experiment_name
        self.facts: dict[str, Any] = {}
        self.best_acc = -1.0
        self.best_epoch = 0
        self._stop = StopRequest()
        self._share = 1.0

    # ---- what a method may replace -------------------------------------------------------

    def init_optimizer(self, cfg: Any) -> Optimizer:
        return build_optimizer(self.distiller.get_learnable_parameters(), cfg)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The keyword arguments of the distiller for the steps of ``epoch`` after ``start``."""
        for number, data in enumerate(epoch_of(self.train_loader, epoch, start), start):
            batch = self.to_device(data)
            if self.world.size > 1:
                batch["share"] = share_of(self.train_loader, number)
            yield batch

    def backward(self, batch: dict[str, Any], epoch: int) -> StepResult:
        """Leave the gradient of one step in the parameters' ``grad``, which are None before."""
        logits, losses = self.distiller(**batch, epoch=epoch)
        self.scaled(sum(loss.mean() for loss in losses.values())).backward()
        self.reduce_gradients()
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

    def scaled(self, loss: Tensor, share: float | None = None) -> Tensor:
        """A mean over this process's images, as its part of the mean over the whole batch.

        Args:
            share: of the images; None for the current batch's.
        """
        return loss if self.world.size == 1 else loss * (self._share if share is None else share)

    def kept_weights(self, ce: Tensor, kd: Tensor) -> Tensor | None:
        """The two losses' weights [2] for ``StepResult.weights``; None without LOG.WEIGHTS."""
        return torch.stack([ce, kd]).detach() if self.cfg.LOG.WEIGHTS else None

    def reduce_gradients(self) -> None:
        """Sum the gradients in ``grad`` over the processes."""
        self.world.sum_(self._gradients_left())

    @property
    def _image_dtype(self) -> torch.dtype:
        return next(self.distiller.student.parameters()).dtype

    def gradient_norm(self) -> Tensor:
        """Norm over all gradients that the optimizer is about to use."""
        return torch.nn.utils.get_total_norm(self._gradients_left())

    def _gradients_left(self) -> list[Tensor]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    # ---- the loop ------------------------------------------------------------------------

    def train(self, resume: bool = False, allow_changes: bool = False) -> dict[str, Any]:
        """Train up to ``cfg.SOLVER.EPOCHS`` and return what ``result.json`` says.

        Args:
            resume: continue the run in :attr:`log_path` from its latest checkpoint, if it has
                one. Otherwise a run found there is set aside, under the same name with a number.
            allow_changes: resume although the configuration is not the checkpoint's.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
            CheckpointError: a damaged file, one of another run, or a disk that is full.
            ConfigError: the configuration is not that of the checkpoint.
            InterruptedRun: stopped by SIGINT or SIGTERM; :attr:`log_path` holds the last step.
        """
        lock = None
        try:
            with self.world.together():
                if self.world.is_writer:
                    lock = open_folder(self.log_path, keep=resume)
            with self.world.together():
                self._checkpoints = Checkpoints(self)
                done, sums = self._checkpoints.load(allow_changes) if resume else (0, EpochSums())
            with StopRequest() as self._stop:
                return self._train_from(done, sums)
        finally:
            if lock:
                lock.release()

    def _train_from(self, done: int, sums: EpochSums) -> dict[str, Any]:
        epochs, kind = self.cfg.SOLVER.EPOCHS, RunRecord if self.world.is_writer else NoRecord
        with self.world.together():
            record = kind(self.log_path, self.cfg, after_epoch=done)
        progress = Progress(epochs, len(self.train_loader), first_epoch=done + 1)
        try:
            for epoch in range(done + 1, epochs + 1):
                entry = self._train_epoch(epoch, sums, record, progress)
                with self.world.together():
                    record.epoch(entry, sums.step_weights())
                    self._checkpoints.save_epoch(epoch)
                progress.end_epoch(entry)
                sums = EpochSums()
            with self.world.together():
                result = self._result()
                record.finish(result)
            return result
        except KeyboardInterrupt:
            raise InterruptedRun(
                f"interrupted twice, so nothing was saved now; {self.log_path} has the latest "
                "checkpoint, from which --resume continues"
            ) from None
        finally:
            progress.close()
            record.close()

    def _train_epoch(
        self, epoch: int, sums: EpochSums, record: RunRecord, progress: Progress
    ) -> dict[str, Any]:
        """The rest of a pass over the training set, and one over the validation set."""
        lr = adjust_learning_rate(epoch, self.cfg, self.optimizer)
        began = time.monotonic() - sums.seconds
        progress.start_epoch(epoch, sums.steps, sums.images)
        self.distiller.train()
        for batch in self.batches(epoch, sums.steps):
            result = self.train_iter(batch, epoch)
            # A stand-in for an empty piece of the batch does not count.
            sums.add(result, batch["target"], len(batch["target"]) if self._share else 0)
            if sums.steps % READ_EVERY == 0:
                self.check_finite(epoch, sums)
                progress.step(sums.steps, sums.images, sums.metrics.averages())
            self._write_window(sums, record, epoch)
            sums.seconds = time.monotonic() - began
            self._save_within(epoch, sums)
        self.check_finite(
            epoch, sums
        )  # waits for the device, so that the time is that of all steps
        sums.seconds = time.monotonic() - began
        top1, top5, loss = self._validate(epoch, sums)
        if top1 >= self.best_acc:
            self.best_acc, self.best_epoch = top1, epoch
        entry = {
            "epoch": epoch,
            "lr": lr,
            **sums.metrics.averages(self.world),
            "test_acc": top1,
            "test_acc_top5": top5,
            "test_loss": loss,
            "best_acc": self.best_acc,
            "steps": sums.steps,
            "seconds": sums.seconds,
            "images_per_second": sum(self.world.gather(sums.images)) / sums.seconds,
        }
        if means := sums.diagnostics.averages():
            entry[self.diagnostics_name] = means
        return entry

    def check_finite(self, epoch: int, sums: EpochSums) -> None:
        """Raises NonFiniteError, in every process, if something was not finite in one."""
        with self.world.together():
            sums.finite.check(epoch)

    def _validate(self, epoch: int, sums: EpochSums) -> tuple[float, float, float]:
        if self.world.size > 1:
            self.world.assert_agreement(self.optimizer.param_groups[0]["params"])
            self.world.copy_buffers(self.distiller)
            return validate(self.val_loader, self.distiller, self.world)
        try:
            return validate(self._stop.until(self.val_loader), self.distiller)
        except StopDuringValidation:
            self._stop_here(epoch, sums)

    def train_iter(self, batch: dict[str, Any], epoch: int) -> StepResult:
        """One optimizer step."""
        self._share = batch.pop("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        result = self.backward(batch, epoch)
        self.optimizer.step()
        return result

    def _write_window(self, sums: EpochSums, record: RunRecord, epoch: int) -> None:
        """Every TENSORBOARD_FREQ steps, the diagnostics' means over these steps."""
        total = (epoch - 1) * len(self.train_loader) + sums.steps
        if total % self.cfg.LOG.TENSORBOARD_FREQ:
            return
        means = sums.window.averages()
        record.scalars({f"{self.diagnostics_name}/{k}": v for k, v in means.items()}, total)
        sums.window.reset()

    def _save_within(self, epoch: int, sums: EpochSums) -> None:
        """After a step: the checkpoint that is due or that a signal asks for."""
        last = sums.steps == len(self.train_loader)
        # Asking the other processes takes time, so that is done now and then only.
        if self._stop.agreed(self.world, now=last or sums.steps % READ_EVERY == 0):
            self._stop_here(epoch, sums)
        every = self.cfg.LOG.SAVE_EVERY_STEPS
        # After its last step an epoch is about to be saved as a whole.
        if every and sums.steps % every == 0 and not last:
            self._checkpoints.save_step(epoch, sums)

    def _stop_here(self, epoch: int, sums: EpochSums) -> NoReturn:
        """Save and end the run, as SIGINT or SIGTERM asks."""
        self._checkpoints.save_step(epoch, sums)
        with self.world.together():
            raise self._stop.error(epoch, sums.steps, self.log_path)

    def _result(self) -> dict[str, Any]:
        return run_result(
            self.cfg,
            self.device,
            name=self.experiment_name,
            history=read_metrics(self.log_path),
            processes=self.world.size,
            best=(self.best_acc, self.best_epoch),
            seconds=self._checkpoints.seconds,
            **self.facts,
        )
