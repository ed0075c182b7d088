"""Losses of half-precision logits are computed in single precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Loss = TypeVar("Loss", bound=Callable[..., Any])


def at_least_single(loss: Loss) -> Loss:
    """``loss`` with its arguments, and tensors in tuples among them, in single precision or double.

    The small numbers that keep a quotient or a logarithm finite vanish in half precision, and a
    sum over many classes loses its digits.
    """

    @wraps(loss)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return loss(*map(_raised, args), **{name: _raised(x) for name, x in kwargs.items()})

    return wrapped  # type: ignore[return-value]


def _raised(x: Any) -> Any:
    if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return tuple(map(_raised, x)) if isinstance(x, tuple) else x
