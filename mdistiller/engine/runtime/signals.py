"""Ctrl-C and SIGTERM as requests that the training loop answers where its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mdistiller.errors import InterruptedRun

from .distributed import World

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class StopRequest:
    """While entered, SIGINT and SIGTERM are noted instead of ending the process.

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
            self._before = {s: signal.signal(s, self._note) for s in _NAMES}
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

    def agreed(self, world: World, now: bool) -> bool:
        """Whether all processes of ``world`` are to stop; asked of them where ``now`` is true."""
        if world.size > 1:
            if not now:
                return False
            self.signal = max(number or 0 for number in world.gather(self.signal))
        return bool(self.signal)

    def until(self, loader: Iterable) -> Iterator[Any]:
        """What ``loader`` yields; raises StopDuringValidation once a signal has come."""
        for data in loader:
            if self.signal:
                raise StopDuringValidation
            yield data

    def error(self, epoch: int, step: int, folder: Path) -> InterruptedRun:
        """What ends a run that is saved in ``folder``; with the shells' status, 130 or 143."""
        return InterruptedRun(
            f"{_NAMES[self.signal]} in epoch {epoch} after step {step}, which is saved in "
            f"{folder}; the same command with --resume continues from there",
            128 + self.signal,
        )


class StopDuringValidation(Exception):
    """Leaves a validation pass on a :class:`StopRequest`; caught by the training loop."""


def end_on_sigterm() -> None:
    """Outside of a :class:`StopRequest`, let SIGTERM end the process with one line and 143."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise InterruptedRun(
        "terminated while not training; the same command with --resume starts or continues the run",
        128 + number,
    )
