"""Locks that the operating system releases when their process ends, however it ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind: no protection there.
    fcntl = None


def claim(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Lock ``path`` (created if missing) until the returned file is closed.

    Args:
        wait: until another process releases it.

    Returns:
        The open file, or None if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def is_locked(path: Path) -> bool:
    """Whether a process, this one included, holds a lock on ``path``."""
    if fcntl is None:
        return False
    # Shared, so that two processes that only look do not see each other.
    with suppress(FileNotFoundError, NotADirectoryError), path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
