"""What a training is made of, and the part of it that a weighting method replaces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller

from .epoch import EpochSums, StepResult, epoch_of
from .loop import Loop, Position
from .optim import build_optimizer
from .runtime.clock import Clock
from .runtime.distributed import World, piece_of, share_of
from .runtime.precision import prepare
from .runtime.signals import StopRequest

# What a loader's tuple holds, in this order; the last ones only where a method needs them.
BATCH_KEYS = ("image", "target", "index", "contrastive_index")


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

    Attributes:
        facts: further entries of ``result.json``.
        best_acc, best_epoch: best test top-1 so far in percent, and when.
        stop: the signals that end the run; a fleet's members have one together.
        clock: tells the seconds that the run takes.
        share: this process's part of the images of the current batch.
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
        self.stop, self.clock = StopRequest(), Clock()
        self.share = 1.0

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
        return self.placement()(data)

    def placement(self) -> Callable[[tuple[Tensor, ...]], dict[str, Tensor]]:
        """What :meth:`to_device` does, without a reference to this trainer."""
        dtype = next(self.distiller.student.parameters()).dtype
        return partial(_placed, device=self.device, dtype=dtype, layout=self._image_layout)

    def scaled(self, loss: Tensor, share: float | None = None) -> Tensor:
        """A mean over this process's images, as its part of the mean over the whole batch.

        Args:
            share: of the images; None for the current batch's.
        """
        return loss if self.world.size == 1 else loss * (self.share if share is None else share)

    def kept_weights(self, ce: Tensor, kd: Tensor) -> Tensor | None:
        """The two losses' weights [2] for ``StepResult.weights``; None without LOG.WEIGHTS."""
        return torch.stack([ce, kd]).detach() if self.cfg.LOG.WEIGHTS else None

    def reduce_gradients(self) -> None:
        """Sum the gradients in ``grad`` over the processes."""
        self.world.sum_(self._gradients_left())

    def gradient_norm(self) -> Tensor:
        """Norm over all gradients that the optimizer is about to use."""
        return torch.nn.utils.get_total_norm(self._gradients_left())

    def _gradients_left(self) -> list[Tensor]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]

    # ---- training ------------------------------------------------------------------------

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
        steps = self.steps(resume, allow_changes)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def steps(
        self, resume: bool = False, allow_changes: bool = False
    ) -> Generator[Position, None, dict[str, Any]]:
        """:meth:`train` one step at a time, see :meth:`Loop.steps`."""
        return Loop(self).steps(resume, allow_changes)

    def share_streams(self, share: Callable[[Hashable, Iterable], Iterable]) -> None:
        """Read batches as a member of a fleet.

        Args:
            share: ``share(key, loader)`` gives what stands in for ``loader``; trainers whose
                streams have the same key read the same batches in step.
        """
        self.train_loader = share("train", self.train_loader)

    def check_finite(self, epoch: int, sums: EpochSums) -> None:
        """Raises NonFiniteError, in every process, if something was not finite in one."""
        with self.world.together():
            sums.finite.check(epoch)

    def train_iter(self, batch: dict[str, Any], epoch: int) -> StepResult:
        """One optimizer step."""
        self.share = batch.pop("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        result = self.backward(batch, epoch)
        self.optimizer.step()
        return result


def _placed(
    data: tuple[Tensor, ...],
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> dict[str, Tensor]:
    """A loader's batch on a device, its images in the student's type and memory format."""
    moved = [x.to(device, non_blocking=True) for x in data]
    batch = dict(zip(BATCH_KEYS, moved, strict=False))
    batch["image"] = batch["image"].to(dtype, memory_format=layout)
    return batch
