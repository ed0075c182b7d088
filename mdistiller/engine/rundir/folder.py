"""A run's folder: one process at a time, and never overwritten.

The lock is our own because a report looks at it without taking it (:func:`is_locked`), and because
it must vanish with a killed process and leave nothing to be removed by hand.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO

from mdistiller.console import log
from mdistiller.errors import UNSUPPORTED, MdistillerError

from .files import remove_unfinished

if sys.platform == "win32":  # It has no advisory locks of this kind: no protection there.
    fcntl = None
else:
    import fcntl


def claim(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Lock ``path`` (created if missing) until the returned file is closed.

    The operating system releases the lock when the process ends, however it ends. Where the file
    system has no locks there is a warning and no protection.

    Args:
        wait: until another process releases it.

    Returns:
        The open file, or None if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            file.close()
            raise
        warnings.warn(
            f"the file system of {path.parent} has no locks ({error.strerror}): do not start a "
            "second process there",
            stacklevel=2,
        )
    except BaseException:
        file.close()
        raise
    return file


def is_locked(path: Path) -> bool:
    """Whether a process, this one included, holds a lock on ``path``; False where none can."""
    if fcntl is None:
        return False
    # Shared, so that two processes that only look do not see each other.
    with suppress(FileNotFoundError, NotADirectoryError), path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    return False


class RunLock:
    """A lock on a folder that ends with its process, see :func:`claim`."""

    def __init__(self, folder: Path) -> None:
        file = claim(folder / ".lock")
        if file is None:
            raise MdistillerError(
                f"another process is training in {folder}; wait for it, "
                "or give this run another EXPERIMENT.NAME"
            )
        self._file = file

    def release(self) -> None:
        self._file.close()


def open_folder(folder: Path, keep: bool) -> RunLock:
    """Lock ``folder`` for a run, creating it if missing.

    Args:
        keep: use what is in it. Otherwise a run found there is moved to ``<folder>.1`` (or the
            next free number), so that starting afresh loses nothing.

    Raises:
        MdistillerError: the folder cannot be written, or another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        remove_unfinished(folder)
        if keep or not (folder / "latest").exists():
            return lock
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        log(f"the earlier run in {folder} is now in {aside}")
        lock.release()
        folder.mkdir()
        return RunLock(folder)
    except OSError as error:
        raise MdistillerError(
            f"cannot write into {folder} ({error}); set LOG.PREFIX to another folder"
        ) from None
