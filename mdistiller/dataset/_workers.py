"""The processes that read images: whatever befalls one of them, the run ends, in one line."""

from __future__ import annotations

import errno
import multiprocessing.connection
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from mdistiller.errors import DataError, MdistillerError, explained

_HELD = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def read_by_workers(batches: DataLoader) -> Iterator[Iterator[Any]]:
    """``iter(batches)``; its workers have ended after it, whatever was raised, by them or here.

    Raises:
        DataError: for what a worker raises; one line.
    """
    reader: Any = None
    try:
        reader = _start_workers(batches)
        yield _one_by_one(reader)
    except MdistillerError:
        raise
    except Exception as error:
        reader = reader or _half_started(error)
        error = _cause(reader, error) or error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        # What made one fail may make others fail while they end, with a traceback each.
        for worker in getattr(reader, "_workers", ()):
            worker.kill()
        raise explained(error) or DataError(
            f"images cannot be read or prepared ({reason[-1]}); look at the data and the transform"
        ) from None
    finally:
        # By itself it does this when it is collected, which a traceback may put off for ever, and
        # workers that outlive a SIGTERM would then be waited for at the end of the process.
        getattr(reader, "_shutdown_workers", lambda: None)()
        for worker in getattr(reader, "_workers", ()):  # those that do not listen
            worker.kill()


class _Deaths:
    """PyTorch raises for a worker that has died wherever the program happens to be.

    That can be in the middle of an optimizer's step, which is lost with it, or of a clean-up.
    Here it is put off until a batch is waited for.
    """

    def __init__(self) -> None:
        self._raise: Any = None
        self._waiting = self._died = False

    @contextmanager
    def handler_is_set(self) -> Iterator[None]:
        """Around what makes PyTorch set its handler, which it does once in a process."""
        before = signal.getsignal(signal.SIGCHLD)
        yield
        handler: Any = signal.getsignal(signal.SIGCHLD)
        if handler is before or threading.current_thread() is not threading.main_thread():
            return

        def put_off(number: int, frame: Any) -> None:
            if self._waiting:
                handler(number, frame)
                return
            self._died = True
            if callable(before):
                before(number, frame)

        self._raise = handler
        signal.signal(signal.SIGCHLD, put_off)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, a worker that dies, or has died before, raises a RuntimeError."""
        self._waiting = True
        try:
            if self._died:
                self._died = False
                self._raise(signal.SIGCHLD, None)
            yield
        finally:
            self._waiting = False


_deaths = _Deaths()


def _one_by_one(reader: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _deaths.raised():
            try:
                batch = next(reader)
            except StopIteration:
                return
        yield batch


def _start_workers(batches: DataLoader) -> Iterator[Any]:
    """``iter(batches)``, whose workers get no signal before they can outlive it."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        return iter(batches)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        with _deaths.handler_is_set():
            return iter(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(worker: int) -> None:
    """What a process that reads images does first.

    Ctrl-C and a scheduler's SIGTERM reach workers, too; the run needs them to end its step.

    A second SIGTERM ends a worker, which is what a parent that exits sends to one that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    # Called by the threads that hand over batches, and the memory in which they lie.
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_end_worker)
    sys.excepthook = lambda kind, error, trace: _end_worker(error)


def _end_worker(error: BaseException, batch: Any = None) -> None:
    """Ends the process, with the reason as its status, in which a batch cannot be handed over.

    Python would print a traceback and go on, and who waits for that batch would wait for ever.
    """
    if not isinstance(error, (EOFError, ConnectionError)):  # the run itself has gone
        os._exit(_status(error))


def _status(error: BaseException) -> int:
    """The system's number for ``error``; PyTorch writes it in brackets, or not at all."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif number is None and (written := re.search(r"\((\d+)\)\W*$", str(error))):
        number = int(written[1])
    return number or errno.ENOSPC  # no more shared memory


def _cause(reader: Any, error: Exception) -> Exception | None:
    """Why a worker has ended, if one has, which ``error`` need not say."""
    workers = [w for w in getattr(reader, "_workers", ()) if w.pid is not None]
    if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        # The other end of a connection is gone; its process takes a moment longer to end, and
        # another one until it can be asked for its status.
        for worker in multiprocessing.connection.wait([w.sentinel for w in workers], timeout=5):
            next(w for w in workers if w.sentinel == worker).join(5)
    statuses = [worker.exitcode for worker in workers if worker.exitcode]
    if not statuses:
        return None
    return RuntimeError(f"DataLoader worker exited, exit code {statuses[0]}")


def _half_started(error: Exception) -> Any:
    """The reader that was to be made when ``error`` came, of whose workers some may run; or None.

    PyTorch cannot end those: it looks for what it would have noted of each after the last one.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        reader: Any = frame.f_locals.get("self")
        if hasattr(reader, "_workers"):
            reader._workers_status = [True] * len(reader._workers)
            return reader
    return None
