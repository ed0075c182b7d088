"""Scalarizers of the torchjd package: weights of two losses from their values alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ._state import load_module_state, module_state
from .aggregators import checked_call

# Their names here, torchjd's, and the arguments that torchjd requires.
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "FAMO": ("FAMO", {"shape": 2}),
    "DWA": ("DWA", {}),
    "IMTL-L": ("IMTLL", {"shape": 2}),
    "STCH": ("STCH", {"mu": 1.0}),
}
METHODS = tuple(_CLASSES)


class Scalarization:
    """One of torchjd's scalarizers on two losses, as weights.

    * ``FAMO`` (arXiv:2306.03792): equal rates of descent; :meth:`after_step` tells it the losses
      on the same batch after the step.
    * ``DWA`` (arXiv:1803.10704): the loss that fell less in the last two epochs weighs more;
      :meth:`after_epoch` ends an epoch. The first two have the weights 1.
    * ``IMTL-L`` (Liu et al., ICLR 2021): learned scales exp(s) that make the losses equal; the
      optimizer must train :attr:`learnable`.
    * ``STCH`` (arXiv:2402.19078): a smooth maximum of the losses; smaller ``mu`` is closer.

    Args:
        method: a name in :data:`METHODS`.
        arguments: torchjd's keyword arguments of it; lists become tensors.
        device: where the losses are.

    Attributes:
        learnable: what an optimizer is to train; gets its gradient from a call.
        needs_losses_after: whether :meth:`after_step` must be called.

    Raises:
        ValueError: unknown method or bad argument; one line.
    """

    def __init__(
        self,
        method: str,
        arguments: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if method not in _CLASSES:
            raise ValueError(f"unknown method {method!r}; valid names: {', '.join(METHODS)}")
        import torchjd.scalarization  # only here: its import takes a second

        self.method = method
        self._device = torch.device(device)
        name, required = _CLASSES[method]
        tensors = {
            key: torch.tensor(value, device=self._device, dtype=torch.float32)
            if isinstance(value, (list, tuple))
            else value
            for key, value in {**required, **(arguments or {})}.items()
        }
        module = checked_call(getattr(torchjd.scalarization, name), method, tensors)
        self._module = module.to(self._device)
        self.needs_losses_after = hasattr(module, "update")
        # FAMO steps its own.
        self.learnable: list[Parameter] = (
            [] if self.needs_losses_after else list(self._module.parameters())
        )

    def __call__(self, losses: Tensor) -> Tensor:
        """The weights [2] of the losses' gradients: the slopes of the scalarization.

        Args:
            losses: values [2], without a graph.
        """
        with torch.enable_grad():
            values = losses.detach().clone().requires_grad_()
            slopes = torch.autograd.grad(self._module(values), [values, *self.learnable])
        for parameter, slope in zip(self.learnable, slopes[1:], strict=True):
            parameter.grad = slope
        return slopes[0]

    def after_step(self, losses: Tensor) -> None:
        """Tell the losses [2] on the batch of the last call, after the step."""
        self._module.update(losses.detach())

    def after_epoch(self) -> None:
        """End an epoch."""
        if hasattr(self._module, "step"):
            self._module.step()

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers; for a checkpoint."""
        # FAMO makes its optimizer in the first update, and has no other way to save it.
        inner = getattr(self._module, "_optimizer", None)
        return {
            "method": self.method,
            "module": module_state(self._module),
            "parameters": [p.detach().clone() for p in self._module.parameters()],
            "optimizer": None if inner is None else copy.deepcopy(inner.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the state is another method's.
        """
        if state["method"] != self.method:
            raise ValueError(f"the checkpoint is of method {state['method']}, not {self.method}")
        module = self._module
        load_module_state(module, state["module"], self._device)
        for parameter, value in zip(module.parameters(), state["parameters"], strict=True):
            parameter.copy_(value)
        if state["optimizer"] is not None:
            module._optimizer = torch.optim.Adam(
                module.parameters(), lr=module.lr, weight_decay=module.weight_decay
            )
            module._optimizer.load_state_dict(state["optimizer"])
