"""Seeds: every random stream of a run has its own, derived from one number and a name.

Derived rather than shared, so that adding a stream (an auxiliary batch, a data-loader
worker) never shifts the numbers of another one.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called ``names``, e.g. ``derive_seed(0, "train", epoch)``."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for the stream called ``names``.

    It lives on the CPU for every device, so that a run draws the same order and the same
    augmentation wherever it trains.
    """
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators (all devices)."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # where it keeps the text of its stack for each kind of device that is not there
        torch.default_generator.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """The state of the global generators that :func:`seed_everything` seeds, as they give it."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_global_state(state: dict[str, Any]) -> None:
    """Restore :func:`global_state`."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
