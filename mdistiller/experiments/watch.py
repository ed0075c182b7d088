"""Sees the process of a training through on its machine: one that hangs is ended.

A process is taken to hang when it has left no sign of life for long: no new line in its logs,
nothing new in its run folders. Training prints a line an epoch, and one every ten minutes within
long ones.

Only the standard library is imported here: Ray sends this module to its workers whole, for one
that had to import the package, torch with it, would take seconds and hundreds of megabytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

HANG_MINUTES = 60.0

_LOOK_SECONDS = 5.0


class Watch:
    """Whether a process that writes to ``paths`` is silent.

    Args:
        paths: its logs and folders, of which the times of change count.
        minutes: of silence; 0: no limit.
    """

    def __init__(self, paths: Sequence[str], minutes: float) -> None:
        self._paths, self._limit = paths, 60 * minutes
        # Of short limits, which are for tests, a part.
        self._every = min(_LOOK_SECONDS, self._limit / 4)
        self._looked, self._silent = time.monotonic(), 0.0
        self._seen: list[int] | None = None

    def is_silent(self) -> bool:
        """To be asked often."""
        passed = time.monotonic() - self._looked
        if not self._limit or passed < self._every:
            return False
        self._looked += passed
        if (seen := list(map(_changed, self._paths))) != self._seen:
            self._seen, self._silent = seen, 0.0
        else:
            # Not more for a look, since this process may have been stopped with the other.
            self._silent += min(passed, 2 * _LOOK_SECONDS)
        return self._silent > self._limit

    def end(self, process: subprocess.Popen) -> None:
        """Kill a silent process, which leads a group, and say so in its log, the first path."""
        with open(self._paths[0], "a", encoding="utf-8") as log:
            log.write(f"error: no sign of life for {self._limit / 60:g} minutes: it was killed\n")
        os.killpg(process.pid, signal.SIGKILL)


def _changed(path: str) -> int:
    """When it was changed, in ns; the times of other machines are compared with each other only."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def train(
    folder: str,
    command: Sequence[str],
    variables: dict[str, str],
    paths: Sequence[str],
    minutes: float,
) -> int:
    """What a Ray worker does: train in a process of its own; returns its exit status.

    Args:
        folder: the caller's working folder.
        command: for the interpreter, with PARENT for this process's id.
        variables: of the environment; the worker's own say which devices Ray has given to it.
        paths, minutes: as for :class:`Watch`; the first takes what the process prints.
    """
    os.chdir(folder)
    command = [str(os.getpid()) if word == "PARENT" else word for word in command]
    with open(paths[0], "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    watch = Watch(paths, minutes)
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if watch.is_silent():
                watch.end(process)
