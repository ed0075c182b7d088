"""The device a run computes on, and what it can do."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

from .errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name``; "auto" takes cuda, then mps, then cpu.

    Raises:
        ConfigError: the name is no device, or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"SOLVER.DEVICE {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps"
        ) from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ConfigError(f"SOLVER.DEVICE {name!r} is not available on this machine; use auto")
    return device


def solve_dtype(device: torch.device) -> torch.dtype:
    """float64 where ``device`` has it; float32 on mps, which does not."""
    return torch.float32 if device.type == "mps" else torch.float64


@cache
def processor() -> dict[str, str]:
    """The processor's model ("cpu"), and the widest of its "instructions" that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(models, "") or platform.processor() or platform.machine()
    return {"cpu": name, "instructions": torch.backends.cpu.get_cpu_capability()}
