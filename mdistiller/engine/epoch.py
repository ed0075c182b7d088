"""What a training step reports, and what the loop adds up of it over an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .meters import DeviceMeter, accuracy
from .runtime.finite import FiniteWatch


@dataclass
class StepResult:
    """What a trainer's ``backward`` reports of one step; all tensors stay on the device.

    Attributes:
        logits: the student's [B, C] on the current batch.
        losses: the distiller's losses by name, scalar or shape [1].
        diagnostics: scalars whose epoch means go into the logs.
        gradients: scalars by description that must be finite, e.g. a gradient's norm.
        weights: [2], what multiplied the two losses' gradients, where LOG.WEIGHTS asks for it.
    """

    logits: Tensor
    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None


class EpochSums:
    """The running sums of one epoch, kept on the device; saved with a checkpoint within it.

    Attributes:
        steps, images: done so far in this epoch.
        seconds: spent on them.
        metrics: losses and accuracies over the epoch.
        diagnostics, window: the trainer's diagnostics over the epoch, and since the window was
            last written.
        finite: which losses and gradients were not finite, and when.
    """

    _METERS = ("metrics", "diagnostics", "window", "finite")

    def __init__(self) -> None:
        self.steps = self.images = 0
        self.seconds = 0.0
        self.metrics, self.diagnostics, self.window = DeviceMeter(), DeviceMeter(), DeviceMeter()
        self.finite = FiniteWatch()
        self._weights: list[Tensor] = []

    def add(self, result: StepResult, target: Tensor, images: int) -> None:
        """One step on ``images`` images with the labels ``target`` [B]; stays on the device."""
        self.steps += 1
        self.images += images
        self.metrics.update(measure(result, target), images)
        self.diagnostics.update(result.diagnostics)
        self.window.update(result.diagnostics)
        self.finite.update({**result.losses, **result.gradients}, self.steps)
        if result.weights is not None:
            self._weights.append(result.weights)

    def step_weights(self) -> dict[str, list[float]]:
        """``ce`` and ``kd``, the losses' weights in every step so far; empty if none are kept.

        One host read, however many steps there were.
        """
        if not self._weights:
            return {}
        return dict(zip(("ce", "kd"), torch.stack(self._weights, dim=1).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which :meth:`load_state_dict` continues."""
        meters = {name: getattr(self, name).state_dict() for name in self._METERS}
        sums = {"steps": self.steps, "images": self.images, "seconds": self.seconds, **meters}
        # Only where they are kept, so that other checkpoints stay as they are.
        return {**sums, "weights": torch.stack(self._weights).cpu()} if self._weights else sums

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; its tensors are taken over as they are."""
        self.steps, self.images, self.seconds = state["steps"], state["images"], state["seconds"]
        for name in self._METERS:
            getattr(self, name).load_state_dict(state[name])
        self._weights = list(state["weights"]) if "weights" in state else []


def measure(result: StepResult, target: Tensor) -> dict[str, Tensor]:
    top1, top5 = accuracy(result.logits.detach(), target, topk=(1, 5))
    losses = {name: loss.detach().mean() for name, loss in result.losses.items()}
    return {
        "train_loss": sum(losses.values()),
        "train_acc": top1,
        "train_acc_top5": top5,
        **{f"train_{name}": loss for name, loss in losses.items()},
    }


def epoch_of(loader: Iterable, epoch: int, start: int = 0) -> Iterable:
    """``loader`` from batch ``start`` of ``epoch`` on, if its order depends on that.

    A plain list has the same batches in every epoch.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    if start == 0:
        return loader
    return loader.iterate(start) if hasattr(loader, "iterate") else islice(loader, start, None)
