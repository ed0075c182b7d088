"""The process that trains one job: ``python -m mdistiller.experiments.tether PARENT CFG ...``.

It trains like ``tools/train.py``, but continues an interrupted run by itself, and lives no
longer than the process that started it: a training whose parent was killed would go on unseen
and hold the lock on its folder, and nobody could take the run over.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Job

_PR_SET_PDEATHSIG = 1

# Data-loader processes of a training that was killed hold its lock until they notice that.
_LOCK_SECONDS = 20.0


def tether_to(parent: int) -> None:
    """Let the kernel kill this process when ``parent`` ends; Linux only, elsewhere no effect.

    A kill is safe at any moment, for checkpoints are written whole or not at all.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before the call.
    if os.getppid() != parent:
        sys.exit("error: the process that started this training has ended")


def wait_for_lock(job: Job) -> None:
    """Until what is left of an earlier process of ``job`` has ended, if that is soon."""
    from mdistiller.engine.rundir.folder import is_locked

    deadline = time.monotonic() + _LOCK_SECONDS
    while is_locked(job.folder / ".lock") and time.monotonic() < deadline:
        time.sleep(0.2)


def main(parent: int, cfg_file: str, opts: tuple[str, ...]) -> None:
    """Train to the end what ``cfg_file`` and the overrides ``opts`` say, unless it is done."""
    tether_to(parent)
    # Only now, for they take seconds, in which the parent may end.
    from mdistiller.commands.train import main as train

    from .job import Job

    job = Job(cfg_file, opts)
    if job.result() is not None:
        return
    wait_for_lock(job)
    resume = ["--resume"] if job.is_resumable() else []
    train(["--cfg", cfg_file, *resume, *opts])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:]))
