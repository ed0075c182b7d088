"""What the product prints: messages, and streams that cannot end a training.

A run's files are its record; what it prints is a courtesy. Every tool prints through
:func:`steady_output`, so that an output that is closed, full or gone with its terminal stops
neither the tool nor its children.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

_COLOURS = {"INFO": 36, "TRAIN": 32, "EVAL": 31, "WARN": 33}


def log_msg(msg: str, mode: str = "INFO") -> str:
    """``msg`` with a coloured mode in front, for a terminal."""
    return f"\033[{_COLOURS[mode]}m[{mode}] {msg}\033[0m"


def log(msg: str, mode: str = "INFO") -> None:
    """Print ``msg``, with its coloured mode where the output is a terminal that shows colours."""
    stream = steady(sys.stdout)
    stream.write((log_msg(msg, mode) if shows_colours(stream) else msg) + "\n")
    stream.flush()


def shows_colours(stream: IO[str] | SteadyStream) -> bool:
    """Whether ``stream`` is a terminal with colours that nobody has switched off (no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


class Seldom:
    """Says when a line is due in an output that is quiet, so that it is seen to be alive.

    Silence for much longer makes the experiment runner end a process (``mdistiller.experiments``).
    """

    def __init__(self, seconds: float = 600.0) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Count from now: something was printed."""
        self._from = time.monotonic()

    def due(self) -> bool:
        """Whether so many seconds have passed; then it is not due again before as many more."""
        if time.monotonic() - self._from < self._seconds:
            return False
        self.restart()
        return True


class SteadyStream:
    """A text stream whose failures are remembered instead of raised.

    After the first one everything written is dropped. A character that the stream's encoding
    lacks is replaced.

    Args:
        stream: what to write to; None (as ``sys.stdout`` is where it was closed) drops everything.

    Attributes:
        failure: the first error; None as long as there was none.
        optional: whether files, not what is printed, are the tool's result.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        self.optional = False
        if stream is None:
            self.failure = OSError(errno.EBADF, "it is closed")
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        self._attempt("flush")

    def isatty(self) -> bool:
        return self.failure is None and bool(self._attempt("isatty"))

    def _attempt(self, method: str, *arguments: Any) -> Any:
        if self.failure is not None:
            return None
        try:
            return getattr(self.stream, method)(*arguments)
        except OSError as error:
            self.failure = error
        except ValueError as error:  # written to after it was closed
            self.failure = OSError(errno.EBADF, str(error))
        self._discard_the_rest()
        return None

    def _discard_the_rest(self) -> None:
        """Let what is still in the stream's buffer go nowhere, or the interpreter's end fails."""
        try:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
        except (OSError, ValueError, AttributeError):
            pass  # no descriptor of its own, so nothing is left behind in it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def steady(stream: IO[str] | None) -> SteadyStream:
    """``stream`` as a :class:`SteadyStream`."""
    return stream if isinstance(stream, SteadyStream) else SteadyStream(stream)


@contextmanager
def steady_output() -> Iterator[SteadyStream]:
    """Inside, ``sys.stdout`` (which is returned) and ``sys.stderr`` are steady streams."""
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (steady(stream) for stream in before)
    try:
        yield sys.stdout
    finally:
        sys.stdout, sys.stderr = before


def output_is_optional() -> None:
    """Say that the tool which is running succeeds also where nobody can read what it prints."""
    if isinstance(sys.stdout, SteadyStream):
        sys.stdout.optional = True


def _occupy_standard_descriptors() -> None:
    """Open what was closed of descriptors 0 to 2.

    Else the next file opened would get that number, and a child's output would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, hence this one.
            os.open(os.devnull, os.O_RDWR)
