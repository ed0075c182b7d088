"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mdistiller.errors import UNSUPPORTED, CheckpointError


class _Recorder:
    """Passes writes on and remembers why one failed: torch.save hides it behind its own error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def whole_file(path: Path) -> Iterator[Any]:
    """Yields what takes the new content (bytes) of ``path``, which then appears at once.

    The content goes to a temporary name, is flushed to the disk and renamed, so that a process
    or machine that stops at any moment leaves either the old file or the new one.

    Raises:
        CheckpointError: the file cannot be written; an older file at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    recorder = None
    try:
        with temporary.open("wb") as file:
            recorder = _Recorder(file)
            yield recorder
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        _remove(temporary)
        raise cannot_write(path, (recorder and recorder.failure) or error) from None
    except BaseException:
        _remove(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """:func:`whole_file` with ``text`` in UTF-8; a path's bytes that are none stay as they are."""
    with whole_file(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def append_text(path: Path, text: str) -> None:
    """Add ``text`` in UTF-8 to ``path`` and flush it to the disk.

    Raises:
        CheckpointError: as :func:`appending_to`.
    """
    with appending_to(path), path.open("ab") as file:
        file.write(text.encode(errors="surrogateescape"))
        file.flush()
        sync(file.fileno())


@contextmanager
def appending_to(path: Path) -> Iterator[None]:
    """Around writes that add to ``path``: the system's error becomes one that says what to do.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written any more.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return CheckpointError(
        f"cannot write {path} ({reason}); the last complete checkpoint is kept, "
        "free some space or set LOG.PREFIX to another folder and continue with --resume"
    )


def sync(descriptor: int) -> None:
    """Flush an open file or folder to the disk; a file system that cannot is no error."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(
            f"the file system of this run cannot be told to write to its disk ({error.strerror}); "
            "work goes on, but a power cut may cost what was written last",
            stacklevel=2,
        )


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of :func:`whole_file` in ``folder``."""
    for path in folder.glob(".*.tmp"):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder became read-only: the reason is reported anyway
        path.unlink(missing_ok=True)
