"""How a process that trains uses the machine it is on: the C allocator, and threads.

A step allocates the same hundred megabytes over and over. By default glibc gives them back to the
kernel in between, which must then zero and map every page again, in pieces of 4 KiB.
"""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from mdistiller.device import usable_cores

# From glibc's malloc.h. The largest threshold it accepts is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_TRIM, _LARGEST_MMAP = 2**31 - 1, 32 * 2**20

# Read by PyTorch at its first large allocation: ask the kernel for pages of 2 MiB.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def use_host() -> None:
    """Settle this process in before it trains; :func:`keep_freed_memory`, and threads.

    PyTorch starts a thread for every core of the machine. Where a container or a batch system
    allows fewer, it gets as many as that; OMP_NUM_THREADS in the environment wins over it.
    """
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, in pages of 2 MiB; nothing computed changes.

    Call it before the first large tensor is made. What the environment says (``MALLOC_*_``,
    ``THP_MEM_ALLOC_ENABLE``) is respected. The process's size stays at its peak until it ends.

    Returns:
        Whether this system has these settings (Linux with glibc).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")
    mallopt = ctypes.CDLL(None).mallopt
    accepted = True
    for name, parameter, value in (
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, _NEVER_TRIM),
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, _LARGEST_MMAP),
    ):
        if name not in os.environ:
            accepted = bool(mallopt(parameter, value)) and accepted
    return accepted
