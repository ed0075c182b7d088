"""Finds the first loss or gradient that is not finite, without reading the device every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdistiller.errors import NonFiniteError


class FiniteWatch:
    """Remembers on the device in which step each named number was first NaN or infinite."""

    def __init__(self) -> None:
        # One tensor per set of names: not every step has the same (a reused weight has fewer).
        self._first: dict[tuple[str, ...], Tensor] = {}

    def update(self, values: dict[str, Tensor], step: int) -> None:
        """Look at the scalars ``values`` of ``step`` (counted from 1); no host read."""
        if not values:
            return
        scalars = torch.stack([v.detach().reshape(()) for v in values.values()])
        names = tuple(values)
        if names not in self._first:
            self._first[names] = torch.zeros(len(names), dtype=torch.int32, device=scalars.device)
        first = self._first[names]
        first += ~torch.isfinite(scalars) * (first == 0) * step

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which :meth:`load_state_dict` continues."""
        return {
            "first": [(list(names), first.clone().cpu()) for names, first in self._first.items()]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._first = {tuple(names): first for names, first in state["first"]}

    def check(self, epoch: int, checkpoint: Path | None = None) -> None:
        """Raise if anything was not finite so far.

        Args:
            checkpoint: what a run would continue from, if it exists.

        Raises:
            NonFiniteError: names the epoch, the step and what was not finite first.
        """
        found = [
            (step, name)
            for names, first in self._first.items()
            for step, name in zip(first.tolist(), names, strict=True)
            if step
        ]
        if not found:
            return
        step = min(found)[0]
        names = [name for s, name in found if s == step]
        saved = checkpoint is not None and checkpoint.exists()
        kept = f"{checkpoint} is from before" if saved else "no checkpoint was written yet"
        raise NonFiniteError(
            f"not finite in epoch {epoch}, step {step}: {', '.join(names)}; training stopped, "
            f"{kept}; lower SOLVER.LR or look at the data and loss weights"
        )
