"""Signals as requests that the training loop answers where its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mdistiller.errors import InterruptedRun

from .distributed import World

# What ends a run with its step saved: Ctrl-C, a scheduler's SIGTERM, and on systems that have them
# a terminal that is gone, a batch system's warnings and a limit of CPU time.
_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"} | {
    getattr(signal, name): f"stopped by {name}"
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
}
_ALWAYS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the signals that end a run are noted instead of ending the process.

    Of those beside SIGINT and SIGTERM, one that is ignored (nohup) or has a handler of someone
    else's is left as it is.

    Entered several times (by the members of a fleet), it acts until it was left as often.

    Attributes:
        signal: which one came, None or 0 if none did.
        at_once: whether a second SIGINT came.

    A second SIGINT raises KeyboardInterrupt at once, for those who cannot wait for the end of a
    step. Outside the main thread, where Python does not allow handlers, nothing is installed.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False
        self._entered = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._entered += 1
        if self._entered > 1:
            return self
        # What stopped an earlier training does not stop this one.
        self.signal, self.at_once = None, False
        if threading.current_thread() is threading.main_thread():
            ours = [s for s in _NAMES if s in _ALWAYS or signal.getsignal(s) in _FREE]
            self._before = {s: signal.signal(s, self._note) for s in ours}
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered -= 1
        if self._entered:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            self.at_once = True
            raise KeyboardInterrupt
        # The latest one decides on the exit status.
        self.signal = number

    def agree(self, world: World) -> None:
        """Let a signal that came to one process of ``world`` count for all of them."""
        self.signal = max(number or 0 for number in world.gather(self.signal))

    def until(self, loader: Iterable) -> Iterator[Any]:
        """What ``loader`` yields; raises StopDuringValidation once a signal has come."""
        iterator = iter(loader)
        try:
            for data in iterator:
                if self.signal:
                    raise StopDuringValidation
                yield data
        finally:
            # Ends a loader's worker processes.
            getattr(iterator, "close", lambda: None)()

    def error(self, epoch: int, step: int, folder: Path) -> InterruptedRun:
        """What ends a run that is saved in ``folder``; with the shells' status, 130 or 143."""
        assert self.signal is not None
        return InterruptedRun(
            f"{_NAMES[self.signal]} in epoch {epoch} after step {step}, which is saved in "
            f"{folder}; the same command with --resume continues from there",
            128 + self.signal,
        )


class StopDuringValidation(Exception):
    """Leaves a validation pass on a :class:`StopRequest`; caught by the training loop."""


def end_on_signals() -> None:
    """Outside of a :class:`StopRequest`, let a signal end the process with one line.

    The exit status is the shells', 143 for SIGTERM. What is ignored stays ignored.
    """
    for number in _NAMES:
        # Python turns SIGINT into KeyboardInterrupt by itself.
        if number != signal.SIGINT and signal.getsignal(number) in _FREE:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise InterruptedRun(
        f"{_NAMES[number]} while not training; the same command with --resume starts or continues "
        "the run",
        128 + number,
    )


# Handlers in whose place the run's own may be put.
_FREE = (signal.SIG_DFL, _end)
