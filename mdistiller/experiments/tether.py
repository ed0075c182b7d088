"""Trains like ``tools/train.py``, but not longer than the process that started it lives.

``python -m mdistiller.experiments.tether PARENT_PID --cfg ...``. A training whose parent was
killed would go on unseen and hold the lock on its folder, and nobody could take the run over.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


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


if __name__ == "__main__":
    tether_to(int(sys.argv[1]))
    from mdistiller.engine.command import main

    main(sys.argv[2:])
