"""Algorithms that give the same bits in every run on the same machine (SOLVER.DETERMINISTIC)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mdistiller.errors import ConfigError


def use_deterministic_algorithms() -> None:
    """Make torch choose deterministic algorithms from here on, and refuse where it has none.

    On a CPU runs are bit-identical anyway for the same number of threads. On CUDA, cuDNN's and
    cuBLAS's free choice and atomic additions make them differ without this. To be called
    before the first computation on a device.
    """
    # cuBLAS reads it when it starts; one of the two values with which it is deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def name_nondeterministic() -> Iterator[None]:
    """Inside, an operation that torch refuses for this reason is a :class:`ConfigError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "deterministic" not in text:
            raise
        raise ConfigError(
            f"SOLVER.DETERMINISTIC: {text.split('.')[0]}; use SOLVER.DEVICE cpu, or train "
            "without --deterministic"
        ) from None
