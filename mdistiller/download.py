"""Downloads that can be continued, and archives that unpack only where they are told to.

Several processes may want the same at once: the first one makes it, the others wait.
"""

from __future__ import annotations

import http.client
import lzma
import os
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from .console import log
from .errors import UNSUPPORTED, DataError

ATTEMPTS = 3
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before each further one
_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20

# What the readers of archives raise; RuntimeError: encrypted, or an unknown compression.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold off other processes and threads that make ``path`` in such a block, too.

    Whoever had to wait looks again at what is there. The lock is a hidden file beside ``path``,
    which ends with its process, however that ends, and is removed afterwards. Where the file
    system has no locks there is a warning and no protection.

    Raises:
        DataError: the folder of ``path`` cannot be created.
    """
    path = path.absolute()  # "." has a name then
    _create_folder(path.parent)
    place = path.parent / f".{path.name}.lock"
    lock = FileLock(place)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log(f"waiting for another process, which is making {path}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        # Any other failure will be met again, and told, by who writes there.
        if isinstance(error, NotImplementedError) or error.errno in UNSUPPORTED:
            warnings.warn(
                f"the file system of {path.parent} has no locks: do not make {path.name} in two "
                "processes at once"
            )
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                # Before the release: those who wait notice that their file is gone, and try anew.
                place.unlink(missing_ok=True)
            with suppress(OSError):
                lock.release()


def fetch(url: str, path: str | Path, progress: bool = True) -> Path:
    """Download ``url`` to ``path``, continuing an earlier attempt that was interrupted.

    The data go to ``path`` + ".part", which stays when the download is interrupted and is
    renamed when it is complete: a file called ``path`` is never half a file. If it exists
    already, nothing is downloaded; if another process is downloading it, this one waits.

    Args:
        url: http or https.
        path: the file to write; its folder is created.
        progress: show a progress bar, if the standard error stream is a terminal.

    Returns:
        ``path``.

    Raises:
        DataError: the server refuses, the network fails ``ATTEMPTS`` times in a row
            without a byte more, or the file cannot be written.
    """
    path = Path(path)
    if path.exists():
        return path
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http and https addresses can be downloaded")
    with exclusive(path):
        if not path.exists():
            _fetch(url, path, progress)
    return path


def _fetch(url: str, path: Path, progress: bool) -> None:
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, progress)
            break
        except _Transient as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures == ATTEMPTS:
                kept = f"; {part} is kept, run again to continue" if part.exists() else ""
                raise DataError(
                    f"{url}: download failed {ATTEMPTS} times in a row ({error}){kept}"
                ) from None
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))
    os.replace(part, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def file_name(url: str) -> str:
    """The last part of the path of ``url``."""
    return PurePosixPath(urllib.parse.urlsplit(url).path).name or "download"


class _Transient(Exception):
    """A failure that may be gone at the next attempt."""


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror})") from None


def _transfer(url: str, part: Path, progress: bool) -> None:
    """One attempt to complete ``part``."""
    offset = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and _complete(dict(error.headers), offset):
                return
        raise _http_failure(url, error, part) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Transient(_reason(error)) from None
    with response:
        start = _start_of_body(response)
        if start not in (0, offset):
            part.unlink(missing_ok=True)
            raise _Transient("the server sent another part of the file than asked for")
        # A start of 0 despite an offset: the server cannot continue, and sends it all again.
        _receive(response, part, start, progress)


def _complete(headers: Mapping[str, str], size: int) -> bool:
    """Whether a refused range means that all ``size`` bytes of the file are there."""
    return headers.get("Content-Range", "") == f"bytes */{size}"


def _http_failure(url: str, error: urllib.error.HTTPError, part: Path) -> Exception:
    if error.code == 416:  # more than the whole file: it is another file by now
        part.unlink(missing_ok=True)
        return _Transient("the server's file has changed")
    if error.code >= 500 or error.code in (408, 429):
        return _Transient(f"the server answers {error.code} {error.reason}")
    return DataError(f"{url}: the server answers {error.code} {error.reason}; check the address")


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return " ".join(str(cause).split()) or type(error).__name__


def _start_of_body(response: http.client.HTTPResponse) -> int:
    """The position in the file of the first byte of the body."""
    if response.status != 206:
        return 0
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _receive(response: http.client.HTTPResponse, part: Path, offset: int, progress: bool) -> None:
    total = None if response.length is None else offset + response.length
    bar = tqdm(
        desc=part.stem,
        total=total,
        initial=offset,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: shown on a terminal only
    )
    try:
        with bar, part.open("ab" if offset else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise DataError(f"{part}: cannot be written ({error.strerror})") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Transient(f"the connection ended after {size} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(_reason(error)) from None


def unpack(archive: str | Path, dest: str | Path) -> None:
    """Unpack a tar (compressed or not) or zip archive into the folder ``dest``.

    All members are checked first, and unpacked beside their place before they are moved there.
    Files that exist are replaced.

    Raises:
        DataError: the archive is damaged, or has a member that is not a plain file or folder
            or that would lie outside ``dest``; nothing is unpacked then.
    """
    archive, dest = Path(archive), Path(dest)
    extract = _extractor(archive)
    _create_folder(dest)
    try:
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=dest) as scratch:
            extract(Path(scratch))
            _merge(Path(scratch), dest)
    except _DAMAGED as error:
        raise DataError(f"{archive}: damaged ({_reason(error)}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {dest} ({error})") from None


def _extractor(archive: Path) -> Callable[[Path], None]:
    try:
        with archive.open("rb") as file:
            # Tar first: a tar of PyTorch checkpoints, which are zip files, passes for a zip too.
            if tarfile.is_tarfile(file):
                return lambda folder: _extract_tar(archive, folder)
            file.seek(0)
            if zipfile.is_zipfile(file):
                return lambda folder: _extract_zip(archive, folder)
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{archive}: cannot be read ({_reason(error)})") from None
    raise DataError(f"{archive}: neither a tar nor a zip archive, or damaged; fetch it again")


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            _check_member(archive, member.name, plain=member.isreg() or member.isdir())
        _check_end(tar)
        # Pythons before 3.10.12 lack the filter; the check above does not depend on it.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members, **options)


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse an archive that was cut between two members, which tarfile takes for its end.

    Raises:
        tarfile.ReadError: after the last member there is no block of zeros.
    """
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it ends without its end mark")


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zip_file:
        for member in zip_file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_member(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        zip_file.extractall(folder)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    if not plain:
        raise DataError(f"{archive}: refused, its member {name!r} is no plain file or folder")
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or path.drive or ".." in path.parts:
            raise DataError(f"{archive}: refused, its member {name!r} would lie outside")


def _merge(source: Path, target: Path) -> None:
    """Move the contents of one folder into another, whole folders where they are new."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        else:
            os.replace(entry, place)
