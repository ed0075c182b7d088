"""Checkpoint files: written whole or not at all, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdistiller.seeding import global_state, set_global_state

from .files import whole_file

# Keys of the wrapped distiller in mdistiller's files, which are kept.
WRAPPER = "module."


def save_checkpoint(obj: Any, path: str | Path) -> None:
    """Write ``obj`` with ``torch.save``, see :func:`~mdistiller.engine.rundir.files.whole_file`.

    Raises:
        CheckpointError: the file cannot be written; an older file at ``path`` is untouched.
    """
    with whole_file(Path(path)) as file:
        torch.save(obj, file)


def wrap_keys(state: dict[str, Any]) -> dict[str, Any]:
    """A distiller's state dict under the keys of mdistiller's files."""
    return {WRAPPER + key: value for key, value in state.items()}


def unwrap_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`wrap_keys`; keys without the prefix are left as they are."""
    return {key.removeprefix(WRAPPER): value for key, value in state.items()}


def random_state() -> dict[str, Any]:
    """The state of every global random generator, made of tensors and plain types."""
    state = global_state()
    kind, keys, position, has_gauss, gauss = state["numpy"]
    version, internal, next_gauss = state["python"]
    return {
        **state,
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": (version, torch.tensor(internal, dtype=torch.int64), next_gauss),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore :func:`random_state`."""
    kind, keys, *rest = state["numpy"]
    version, internal, next_gauss = state["python"]
    plain = {
        "torch": state["torch"].cpu(),
        "numpy": (kind, keys.cpu().numpy().astype(np.uint32), *rest),
        "python": (version, tuple(internal.tolist()), next_gauss),
    }
    if "cuda" in state:
        plain["cuda"] = [s.cpu() for s in state["cuda"]]
    set_global_state(plain)
