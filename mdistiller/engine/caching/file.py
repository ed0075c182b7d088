"""The file of a teacher's answers: what it is bound to, its blocks, and how rows are read.

One line that names the format, a header in JSON, a checksum for every block (0: not written yet),
then the rows, all of one width, as they are in memory. A row is one variant of one image: row
``index * variants + variant``. Blocks are written in any order by any number of processes; a
checksum is written after its block has reached the disk, so a process may be killed at any moment.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import warnings
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdistiller.download import exclusive
from mdistiller.engine.rundir.files import UNSUPPORTED, sync
from mdistiller.errors import DataError

if sys.platform == "win32":  # no locks of this kind there: processes may do work twice
    fcntl = None
else:
    import fcntl

DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}

# Rows that the teacher answers in one batch. Always as many, so that the bits of a row do not
# depend on which process computes it.
BLOCK = 256

_MAGIC = b"mdistiller teacher cache 1\n"
_PAGE = 4096


@dataclass(frozen=True)
class Header:
    """What a file of answers is bound to.

    Attributes:
        teacher: name, ``sha256`` of the weights (random ones, if DISTILLER.TEACHER_FAULT says so,
            but not permuted), and what else decides on its answers.
        data: ``type`` of the data set, how many ``images`` there are to train on before any are
            chosen or held out, and ``sha256`` of their pixels.
        recipe: ``padding``, ``flip``, ``mean`` and ``std``: what a variant is.
        variants: of an image, shifts times flips.
        parts: the shape, for one image, of each answer that is kept.
        dtype: a key of :data:`DTYPES`.
        way: how the teacher was run (BatchNorms merged, bf16, memory layout, device).
    """

    teacher: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    variants: int
    parts: dict[str, list[int]]
    dtype: str
    way: dict[str, Any]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of all that a file is bound to."""
        return hashlib.sha256(self.encoded).hexdigest()[:8]

    @property
    def rows(self) -> int:
        return self.data["images"] * self.variants

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return sum(map(prod, self.parts.values()))

    @cached_property
    def encoded(self) -> bytes:
        """The beginning of the file, up to the checksums."""
        head = _MAGIC + json.dumps(asdict(self)).encode() + b"\n"
        return head + b" " * (-len(head) % _PAGE)

    @property
    def first_row(self) -> int:
        """Where the rows begin in the file."""
        end = len(self.encoded) + 4 * self.blocks
        return end + -end % _PAGE

    @property
    def row_bytes(self) -> int:
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def file_bytes(self) -> int:
        return self.first_row + self.rows * self.row_bytes

    def rows_of(self, block: int) -> range:
        """The rows of a block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, self.rows))


def differences(found: Header, wanted: Header) -> list[str]:
    """In words, in what a file is another one than what is asked for."""
    words = []
    if found.teacher != wanted.teacher:
        names = (f"{h.teacher['name']} {h.teacher['sha256'][:12]}" for h in (found, wanted))
        words.append(f"of another teacher ({' instead of '.join(names)})")
    if found.data != wanted.data:
        images = (f"{h.data['images']} of {h.data['type']}" for h in (found, wanted))
        words.append(f"of other training images ({' instead of '.join(images)})")
    if (found.recipe, found.variants) != (wanted.recipe, wanted.variants):
        words.append("of another augmentation")
    return words


def create(path: Path, header: Header) -> None:
    """Make a file at ``path`` without any block, and take the disk space for it.

    Raises:
        DataError: there is no room, or it cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header.encoded)
            file.truncate(header.file_bytes)
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, header.file_bytes)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
            sync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, header.file_bytes) from None


def cannot_write(path: Path, error: OSError, wanted: int) -> DataError:
    """One line for what the system says."""
    room = f" ({wanted / 2**20:.0f} MiB are needed)" if error.errno == errno.ENOSPC else ""
    return DataError(
        f"cannot write the teacher's answers to {path}: {error.strerror}{room}; free some space, "
        "choose another file, or keep them in fp16"
    )


class CacheFile:
    """An existing file of answers.

    Args:
        path: of the file.
        writable: open it to add blocks.

    Raises:
        DataError: it is missing, is no such file, or is damaged.
    """

    def __init__(self, path: str | Path, writable: bool = False) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"the teacher's answers {path} cannot be read ({error.strerror}); make them with "
                f"python tools/cache_teacher.py --cfg ... --out {path}"
            ) from None
        # However this object goes; a lock ends with it, too.
        self.close = weakref.finalize(self, os.close, self._file)
        self.header = self._read_header()
        actual = os.fstat(self._file).st_size
        if actual != self.header.file_bytes:
            raise DataError(
                f"{path} is damaged: it has {actual} bytes, not {self.header.file_bytes}; delete "
                "it and run tools/cache_teacher.py again"
            )

    def _read_header(self) -> Header:
        line = os.read(self._file, _PAGE)
        if line.startswith(_MAGIC):
            while b"\n" not in line[len(_MAGIC) :] and (more := os.read(self._file, _PAGE)):
                line += more
            try:
                return Header(**json.loads(line[len(_MAGIC) :].partition(b"\n")[0]))
            except (ValueError, TypeError):
                pass
        raise DataError(
            f"{self.path} does not hold a teacher's answers as this version writes them; make "
            "another file with tools/cache_teacher.py"
        )

    # ---- blocks ------------------------------------------------------------------------------

    @property
    def checksums(self) -> np.ndarray:
        """Of every block as of now, uint32; 0 where it is not written yet."""
        raw = os.pread(self._file, 4 * self.header.blocks, len(self.header.encoded))
        return np.frombuffer(raw, dtype="<u4")

    @property
    def missing(self) -> int:
        """How many blocks are not written yet."""
        return int((self.checksums == 0).sum())

    @property
    def id(self) -> str:
        """SHA-256 (hexadecimal) over what the file is bound to and the checksums of its blocks."""
        return hashlib.sha256(self.header.encoded + self.checksums.tobytes()).hexdigest()

    @contextmanager
    def claimed(self, block: int) -> Iterator[bool]:
        """Inside, no other process works on ``block``; False if one does already.

        A lock on four bytes, which ends with its process. It would end, too, where this process
        closes the same file a second time.
        """
        place = (4, len(self.header.encoded) + 4 * block)
        if fcntl is None:
            yield True
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, *place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                yield False
                return
            if error.errno not in UNSUPPORTED:
                raise
            warnings.warn("the file system has no locks: give every process its --shard")
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, *place)

    def write(self, block: int, rows: Tensor) -> None:
        """Write a block; it counts once its checksum is there.

        Args:
            rows: [R, width] on the CPU.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        wanted = self.header.rows_of(block)
        with np.errstate(over="ignore"):
            stored = rows.numpy().astype(DTYPES[self.header.dtype])
        if not np.isfinite(stored).all():
            raise DataError(
                f"the teacher's answers to images {wanted.start // self.header.variants} and on "
                f"are not finite in {self.header.dtype}; choose fp32, or check the teacher"
            )
        raw = stored.tobytes()
        assert len(raw) == len(wanted) * self.header.row_bytes
        file, first = self._file, self.header.first_row
        try:
            _write_all(file, raw, first + wanted.start * self.header.row_bytes)
            sync(file)
            _write_all(file, _checksum(raw), len(self.header.encoded) + 4 * block)
        except OSError as error:
            raise cannot_write(self.path, error, self.header.file_bytes) from None

    def damaged(self, block: int) -> bool:
        """Whether a block that has been written is not what was written."""
        wanted, bytes_ = self.header.rows_of(block), self.header.row_bytes
        place = self.header.first_row + wanted.start * bytes_
        raw = os.pread(self._file, len(wanted) * bytes_, place)
        return _checksum(raw) != self.checksums[block].tobytes()

    # ---- rows --------------------------------------------------------------------------------

    @cached_property
    def _mapped(self) -> Tensor:
        header = self.header
        # Copy on write: nothing is ever written, but torch wants memory that it could write to.
        rows = np.memmap(
            self.path, DTYPES[header.dtype], "c", header.first_row, (header.rows, header.width)
        )
        return torch.from_numpy(rows)

    def rows(self, index: Tensor, variant: Tensor) -> Tensor:
        """The answers [B, width] to variants ``variant`` [B] of the images ``index`` [B].

        Args:
            index, variant: int64, on the CPU.
        """
        return self._mapped.index_select(0, index * self.header.variants + variant)

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows [B, width] as answers [B, *shape], in single precision, by their name."""
        sizes = [prod(shape) for shape in self.header.parts.values()]
        pieces = rows.float().split(sizes, dim=1)
        named = zip(self.header.parts.items(), pieces, strict=True)
        return {name: piece.reshape(-1, *shape) for (name, shape), piece in named}


def open_or_create(path: Path, header: Header) -> CacheFile:
    """The file at ``path``, to add blocks to; made if it is missing.

    Raises:
        DataError: what is there is something else.
    """
    with exclusive(path):
        if not path.exists():
            create(path, header)
    file = CacheFile(path, writable=True)
    if file.header != header:
        words = differences(file.header, header)
        if file.header.parts != header.parts or file.header.dtype != header.dtype:
            words.append("of other answers or in another precision")
        if file.header.way != header.way:
            words.append("of a teacher run in another way (SOLVER.FOLD_TEACHER, AMP, DEVICE)")
        raise DataError(f"{path} is {', '.join(words)}; choose another --out, or delete it")
    return file


def _checksum(raw: bytes) -> bytes:
    # 0 stands for a block that is not there.
    return (zlib.crc32(raw) or 1).to_bytes(4, "little")


def _write_all(file: int, raw: bytes, place: int) -> None:
    view = memoryview(raw)
    while view:
        done = os.pwrite(file, view, place)
        view, place = view[done:], place + done
