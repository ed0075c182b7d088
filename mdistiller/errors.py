"""Errors that a user can act on.

Each carries a message of one line (what is wrong, and what to do) and the exit status
with which a command-line tool ends when it meets it. :func:`explained` finds such a message for
what a system reports when it runs out of something.
"""

from __future__ import annotations

import errno
import re
import signal


class MdistillerError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    exit_code = 1


class ConfigError(MdistillerError, ValueError):
    """An unknown key, a value of the wrong type, or an impossible combination."""

    exit_code = 2


class UnknownNameError(ConfigError, KeyError):
    """A name that is not in a registry."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, with its line breaks escaped.
        return str(self.args[0]) if self.args else ""


class DataError(MdistillerError):
    """A data set that is missing, damaged, or does not fit the request."""


class CheckpointError(MdistillerError):
    """A checkpoint that is missing, damaged, or does not fit the network."""


class NonFiniteError(MdistillerError, ArithmeticError):
    """A loss or a gradient became NaN or infinite during training."""


class InterruptedRun(MdistillerError):
    """A training that was stopped by a signal; ``exit_code`` is the shells' for it."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# What a file system says that does not know an operation (network shares, FUSE, containers).
UNSUPPORTED = frozenset(
    getattr(errno, name)
    for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "ENOTTY")
    if hasattr(errno, name)
)

# What is said of lack of memory: by PyTorch on CPUs and devices, by C++, by oneDNN, by threads.
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a memory",
    "can't start new thread",
)
_NO_FILES = ("too many open files", "ancillary data")  # the latter by a process that gets one
_END_OF_A_WORKER = re.compile(r"dataloader worker.*(killed by signal: ([\w ]+)|exit code (-?\d+))")
_NO_SHARED_MEMORY = ("shared memory", "bus error", "shm_open", "</torch_")


def explained(error: BaseException) -> MdistillerError | None:
    """What to tell a user about ``error``, which is not the input's fault; None for a mistake.

    Known are data that cannot be used (a DataError, as it is), too little memory, shared memory
    or open files, and a process that reads images and was killed.
    """
    if isinstance(error, DataError):
        return error
    if isinstance(error, MdistillerError) or not isinstance(
        error, (MemoryError, RuntimeError, OSError)
    ):
        return None
    text = " ".join(str(error).split())
    lower, number = text.lower(), getattr(error, "errno", None)
    ended = _END_OF_A_WORKER.search(lower)
    if ended and ended[3]:
        # See dataset/_workers.py: a worker that cannot hand over its batch says why by its status.
        number = int(ended[3])
    if number in (errno.EMFILE, errno.ENFILE) or any(w in lower for w in _NO_FILES):
        return DataError(
            "too many open files for the processes that read images; lower DATASET.NUM_WORKERS, "
            "or raise the limit (ulimit -n)"
        )
    if (ended and number in (errno.ENOSPC, -signal.SIGBUS)) or any(
        words in lower for words in _NO_SHARED_MEMORY
    ):
        return DataError(
            "the processes that read images have too little shared memory; lower "
            "DATASET.NUM_WORKERS (0 needs none), or enlarge /dev/shm (docker run --shm-size)"
        )
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or any(w in lower for w in _NO_MEMORY)
    ):
        return MdistillerError(
            f"not enough memory ({text[:100] or type(error).__name__}); lower SOLVER.BATCH_SIZE or "
            "DATASET.TEST.BATCH_SIZE, or use a smaller network"
        )
    if ended:
        return _end_of_a_worker(ended[2], number)
    return None


def _end_of_a_worker(signal_name: str | None, status: int | None) -> DataError:
    """For a process that reads images; it was ended by a signal, or with a status."""
    if signal_name == "killed" or status == -signal.SIGKILL:
        return DataError(
            "a process that reads images was killed, as systems do when memory is short; lower "
            "DATASET.NUM_WORKERS or SOLVER.BATCH_SIZE"
        )
    how = f"by {signal_name}" if signal_name else f"with status {status}"
    if not signal_name and status is not None and status < 0:
        how = f"by {signal.strsignal(-status) or f'signal {-status}'}".lower()
    return DataError(
        f"a process that reads images was ended {how}; DATASET.NUM_WORKERS 0 reads them without "
        "such processes, which shows what is wrong"
    )
