"""A forward pass that leaves a network's buffers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` in train mode normalises by batch statistics but records none.

    BatchNorm layers stop tracking, which costs nothing; any other buffer (an InstanceNorm's,
    one of a layer of one's own) is put back from a copy afterwards. For the forward pass on the
    batch that gives the reference gradient: the student must not see it twice.
    """
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    covered = {id(b) for m in tracking for b in m.buffers(recurse=False)}
    others = [b for b in module.buffers() if id(b) not in covered]
    copies = [(b, b.detach().clone(), b._version) for b in others]
    for m in tracking:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in tracking:
            m.track_running_stats = True
        with torch.no_grad():
            for buffer, copy, version in copies:
                # What the pass has only read is part of its graph: it must not count as changed.
                if buffer._version != version:
                    buffer.copy_(copy)
