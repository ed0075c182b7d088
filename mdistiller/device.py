"""The device a run computes on, and what it can do."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
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


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor``, of the CPU, on ``device``, without waiting for what that still has to do."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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


_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use, at least 1.

    Those it is bound to, but no more than a container's quota of their time: there PyTorch, which
    sees the machine, would start threads that wait for each other.

    Args:
        cgroups: where Linux shows control groups, of version 1 or 2.
        own: the file that says in which ones this process is.
    """
    bound = getattr(os, "sched_getaffinity", None)
    cores = len(bound(0)) if bound else os.cpu_count() or 1
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return cores
    quotas = [math.ceil(quota) for line in lines for quota in _quotas(cgroups, line)]
    return max(1, min([cores, *quotas]))


def _quotas(cgroups: Path, line: str) -> Iterator[float]:
    """Quotas of a line "number:controllers:/path", and of the groups above, in processors."""
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    root = cgroups / controllers if controllers else cgroups
    # Within a container the path may be that outside, and not be there.
    for group in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
        try:
            if controllers:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = ((group / name).read_text(encoding="ascii") for name in names)
            else:
                quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            if int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            pass  # no quota here: no such file, "max", or a version without it
        if group == root:
            return
