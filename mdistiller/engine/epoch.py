"""What the loop adds up over an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batch import Batch, StepResult
from .meters import DeviceMeter, accuracy
from .runtime.finite import FiniteWatch


class EpochState:
    """The running sums of one epoch, kept on the device; saved with a checkpoint within it.

    Args:
        window: see the attribute; of the epoch before, which it goes on with.

    Attributes:
        steps, images: done so far in this epoch.
        seconds: spent on them.
        metrics: losses and accuracies over the epoch.
        diagnostics: the trainer's diagnostics over the epoch.
        window: the same since they were last written, across epochs.
        finite: which losses and gradients were not finite, and when.
    """

    _METERS = ("metrics", "diagnostics", "window", "finite")

    def __init__(self, window: DeviceMeter | None = None) -> None:
        self.steps = self.images = 0
        self.seconds = 0.0
        self.metrics, self.diagnostics = DeviceMeter(), DeviceMeter()
        self.window = window or DeviceMeter()
        self.finite = FiniteWatch()
        self._weights: list[Tensor] = []

    def add(self, result: StepResult, batch: Batch, keep_weights: bool = False) -> None:
        """One step; stays on the device.

        Args:
            keep_weights: remember the two losses' weights in this step.
        """
        # A stand-in for an empty part of a batch does not count.
        images = len(batch.target) if batch.fraction else 0
        self.steps += 1
        self.images += images
        top1, top5 = accuracy(result.logits.detach(), batch.target, topk=(1, 5))
        losses = {f"train_{name}": loss.detach().mean() for name, loss in result.losses.items()}
        first, *others = losses.values()
        metrics = {"train_loss": sum(others, first), "train_acc": top1, "train_acc_top5": top5}
        self.metrics.update(metrics | losses, images)
        self.diagnostics.update(result.diagnostics)
        self.window.update(result.diagnostics)
        self.finite.update({**result.losses, **result.gradients}, self.steps)
        if keep_weights and result.weights is not None:
            self._weights.append(torch.stack(result.weights).detach())

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
