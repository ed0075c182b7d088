"""The IDX format of MNIST-like data sets (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from mdistiller.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of ``ndim`` dimensions in an IDX file, gzipped or not.

    Raises:
        DataError: the file cannot be read, is truncated, or holds something else.
    """
    content = _read(path)
    magic, header_size = content[:4], 4 + 4 * ndim
    if len(magic) == 4 and magic != bytes([0, 0, _UNSIGNED_BYTE, ndim]):
        raise DataError(
            f"{path}: not an IDX file of bytes in {ndim} dimensions (it starts with {magic.hex()})"
        )
    if len(content) < header_size:
        raise DataError(f"{path}: truncated, its IDX header is incomplete")
    shape = struct.unpack(f">{ndim}I", content[4:header_size])
    found, expected = len(content) - header_size, math.prod(shape)
    if found != expected:
        dims = " x ".join(map(str, shape))
        raise DataError(
            f"{path}: corrupt, {dims} bytes are announced, which makes {expected}, "
            f"but {found} follow"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: corrupt or truncated gzip file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return content
