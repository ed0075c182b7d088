"""A run's folder: one process at a time, and never overwritten."""

from __future__ import annotations

from pathlib import Path

from mdistiller.console import say
from mdistiller.errors import MdistillerError

from .files import remove_unfinished
from .lock import claim


class RunLock:
    """A lock on a folder that the operating system releases when its process ends.

    A crash therefore leaves nothing behind that would have to be removed by hand.
    """

    def __init__(self, folder: Path) -> None:
        self._file = claim(folder / ".lock")
        if self._file is None:
            raise MdistillerError(
                f"another process is training in {folder}; wait for it, "
                "or give this run another EXPERIMENT.NAME"
            )

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
        say(f"the earlier run in {folder} is now in {aside}")
        lock.release()
        folder.mkdir()
        return RunLock(folder)
    except OSError as error:
        raise MdistillerError(
            f"cannot write into {folder} ({error}); set LOG.PREFIX to another folder"
        ) from None
