"""What a report of a fault needs to say about the machine, in one paste."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata

import torch

import mdistiller

from .device import processor, resolve_device, usable_cores

_PACKAGES = (
    "torchvision",
    "numpy",
    "torchjd",
    "pandas",
    "matplotlib",
    "yacs",
    "timm",
    "ray",
)
# What changes how fast or in which order a processor sums; a value can hold no secret.
_VARIABLES = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "MALLOC_", "CUDA_", "CUBLAS_", "PYTORCH_")


def environment() -> str:
    """Versions, devices and what the processor can do, as lines of "name: value"."""
    return "\n".join(f"{name}: {value}" for name, value in _facts()) + "\n"


def _facts() -> Iterator[tuple[str, str]]:
    yield "mdistiller", mdistiller.__version__
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "C library", " ".join(platform.libc_ver()) or "unknown"
    yield "torch", torch.__version__
    for name in _PACKAGES:
        yield name, _version(name)
    cpu = processor()
    yield "processor", f"{cpu['cpu']}, torch uses {cpu['instructions']}"
    threads = torch.get_num_threads()
    yield "cores", f"{usable_cores()} of {os.cpu_count()}, torch uses {threads} threads"
    yield "oneDNN", "on" if torch.backends.mkldnn.is_available() else "off"
    yield "bfloat16 on this processor", _bfloat16()
    yield "CUDA of torch", torch.version.cuda or "none"
    if torch.cuda.is_available():
        yield "cuDNN", str(torch.backends.cudnn.version())
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            size = gpu.total_memory / 2**30
            words = f"{gpu.name}, {size:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
            yield f"cuda:{number}", words
    yield "mps", "yes" if torch.backends.mps.is_available() else "no"
    yield "SOLVER.DEVICE auto", str(resolve_device())
    yield "deterministic algorithms", str(torch.are_deterministic_algorithms_enabled())
    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield name, os.environ[name]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _bfloat16() -> str:
    """Whether the processor multiplies bfloat16, as far as torch tells."""
    known = {
        "AVX512_BF16": getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        "AMX": getattr(torch.cpu, "_is_amx_tile_supported", None),
    }
    found = [name for name, ask in known.items() if ask is not None and ask()]
    return " and ".join(found) or "emulated"
