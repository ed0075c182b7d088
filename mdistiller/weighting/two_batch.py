"""Weightings of the torchjd package that compare the gradients of two independent batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._state import load_module_state, module_state
from .aggregators import checked_call
from .gramian import solve_dtype

METHODS = ("MoDo", "SDMGrad")


class CrossGramianWeighting:
    """MoDo (arXiv:2305.20057) or SDMGrad (arXiv:2305.18409) on two losses.

    Args:
        method: a name in :data:`METHODS`.
        arguments: torchjd's keyword arguments of it; lists become tensors.
        device: where the products are.

    Raises:
        ValueError: unknown method or bad argument; one line.
    """

    def __init__(
        self,
        method: str = "MoDo",
        arguments: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; valid names: {', '.join(METHODS)}")
        import torchjd.aggregation  # only here: its import takes a second

        self.method = method
        self._device = torch.device(device)
        dtype = solve_dtype(self._device)
        tensors = {
            name: torch.tensor(value, dtype=dtype, device=self._device)
            if isinstance(value, (list, tuple))
            else value
            for name, value in (arguments or {}).items()
        }
        cls = getattr(torchjd.aggregation, f"{method}Weighting")
        self._module = checked_call(cls, method, tensors)

    def __call__(self, products: Tensor) -> Tensor:
        """The weights [2] of the losses, on the simplex.

        Args:
            products: [2, 2], inner products of the two losses' gradients on one batch (rows)
                with those on another (columns). Not symmetric.
        """
        return self._module(products)

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers; for a checkpoint."""
        return {"method": self.method, "state": module_state(self._module)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the state is another method's.
        """
        if state["method"] != self.method:
            raise ValueError(f"the checkpoint is of method {state['method']}, not {self.method}")
        load_module_state(self._module, state["state"], self._device)
