"""The fill rule, inputs and files of the golden numbers (tests/golden/README.md)."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


@cache
def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def golden_npz(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as f:
        return {k: f[k] for k in f.files}


def seed(text: str) -> int:
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def normal(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers of the stream called ``text``."""
    return np.asarray(np.random.RandomState(seed(text)).standard_normal(shape))


def images(stream: int, n: int, size: int) -> torch.Tensor:
    draw = np.random.RandomState(stream).standard_normal((n, 3, size, size))
    return torch.from_numpy(draw.astype(np.float32))


def labels(stream: int, n: int, classes: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(stream).randint(0, classes, size=(n,))).long()


def fill(
    state_dict: dict[str, torch.Tensor], prefix: str = "golden:", gain: float = 1.0
) -> dict[str, torch.Tensor]:
    """The deterministic contents of a state dict, one independent stream per key."""
    out = {}
    for key, value in state_dict.items():
        shape = tuple(value.shape)
        stem, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            out[key] = torch.zeros_like(value)
            continue
        if key.endswith("contrast.params"):
            out[key] = value.clone()
            continue
        n = normal(prefix + key, shape)
        is_bn = f"{stem}.running_mean" in state_dict
        if leaf == "running_mean":
            a = 0.1 * n
        elif leaf == "running_var":
            a = 0.5 + abs(n)
        elif is_bn and leaf == "weight":
            a = gain * (1 + 0.1 * n)
        elif is_bn and leaf == "bias":
            a = 0.1 * n
        elif leaf in ("memory_v1", "memory_v2"):
            a = n / math.sqrt(shape[1])
        elif len(shape) == 4:
            a = n * math.sqrt(2 / (shape[1] * shape[2] * shape[3]))
        else:
            a = 0.05 * n
        out[key] = torch.from_numpy(np.asarray(a, dtype=np.float32))
    return out
