"""What passes from a loader through a trainer to the loop, and what the loop asks of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.config import Config
from mdistiller.distillers import Distiller

from .runtime.distributed import World
from .runtime.loaders import Batches

# Puts what a loader yields on the device of the run.
DeviceTransform = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass
class Batch:
    """One step's images and what is known of them; the first six as a loader yields them.

    Attributes:
        image: [B, 3, H, W].
        target: class labels [B].
        index: positions in the training set [B]; None where the loader gives none.
        contrastive_index: [B, K + 1]; None, or without columns, for a method that contrasts
            nothing.
        strong: the images under strong augmentation [B, 3, H, W] (DATASET.STRONG_VIEW); None, or
            without columns, where there are none.
        answers: the teacher's, as rows of a file [B, width] (DISTILLER.TEACHER_CACHE).
        step: number of the step in the whole run, from 0.
        fraction: this process's part of the images of all processes; 0 for a stand-in. A mean
            over these images, times this, is its part of the mean over those of all processes.
        auxiliary: a second batch (its image, target and fraction), where the step uses one.
    """

    image: Tensor
    target: Tensor
    index: Tensor | None = None
    contrastive_index: Tensor | None = None
    strong: Tensor | None = None
    answers: Tensor | None = None
    _: KW_ONLY
    step: int = 0
    fraction: float = 1.0
    auxiliary: Batch | None = None

    def inputs(self, epoch: int) -> dict[str, Any]:
        """A distiller's keyword arguments: what there is of this batch, and the epoch."""
        found: dict[str, Any] = {"image": self.image, "target": self.target, "epoch": epoch}
        for name in ("index", "contrastive_index", "strong"):
            value = getattr(self, name)
            # What was not asked for, but stands before something that was, has no columns.
            if value is not None and (value.dim() == 1 or value.shape[1]):
                found[name] = value
        if self.answers is not None:
            # Where the distiller finds them that shows this tensor, and no other, to its teacher.
            self.image.answers = self.answers  # type: ignore[attr-defined]
        return found


@dataclass
class StepResult:
    """What a trainer's ``backward`` reports of one step; all tensors stay on the device.

    Attributes:
        logits: the student's [B, C] on the current batch.
        losses: the distiller's losses by name, scalar or shape [1].
        diagnostics: scalars that describe the step, by name.
        gradients: scalars by description that must be finite, e.g. a gradient's norm.
        weights: what multiplied the gradients of the supervised and the distillation loss, by
            a method that weights them.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: tuple[Tensor, Tensor] | None = None


class Trainable(Protocol):
    """What the loop and its checkpoints ask of a trainer (``trainers/base.py`` says more)."""

    cfg: Config
    device: torch.device
    world: World
    distiller: Distiller
    optimizer: Optimizer
    train_loader: Batches
    val_loader: Batches
    experiment_name: str
    log_path: Path
    diagnostics_name: str
    extra_results: dict[str, Any]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...
    def step(self, batch: Batch, epoch: int) -> StepResult: ...
    def extra_state(self) -> dict[str, Any]: ...
    def load_extra_state(self, state: dict[str, Any]) -> None: ...


def to_device(
    data: tuple[Tensor, ...],
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> tuple[Tensor, ...]:
    """A loader's tensors on ``device``, the images in the student's type and memory format."""
    moved = (x.to(device, non_blocking=True) for x in data)
    # Images are the only tensors of four dimensions.
    return tuple(x.to(dtype, memory_format=layout) if x.dim() == 4 else x for x in moved)


def epoch_of(loader: Batches, epoch: int, start: int = 0) -> Iterable:
    """``loader`` from batch ``start`` of ``epoch`` on, if its order depends on that.

    A plain list has the same batches in every epoch.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    if start == 0:
        return loader
    return loader.iterate(start) if hasattr(loader, "iterate") else islice(loader, start, None)
