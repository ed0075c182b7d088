"""Fetch and unpack Tiny ImageNet, and sort its validation images into classes."""

from __future__ import annotations

from pathlib import Path

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.dataset.tiny_imagenet import FOLDER, sort_val
from mdistiller.download import exclusive, fetch, file_name, unpack
from mdistiller.errors import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Fetch Tiny ImageNet, unpack it and sort its validation images."""
    parser = ToolParser(
        description=__doc__, epilog="example: python tools/download_tiny_imagenet.py --dest ./data"
    )
    parser.add_argument("--url", default=URL, help="address of the archive (default: %(default)s)")
    parser.add_argument(
        "--dest",
        type=Path,
        default=Path("data"),
        help="folder to unpack into, the later DATASET.ROOT (default: ./%(default)s)",
    )
    parser.add_argument(
        "--keep-archive", action="store_true", help="do not delete the archive afterwards"
    )
    args = parser.parse_args(argv)
    _download(args.url, args.dest, args.keep_archive)


def _download(url: str, dest: Path, keep_archive: bool) -> None:
    folder = dest / FOLDER
    if not folder.is_dir():  # the folder appears when all of it is unpacked
        _provide(url, folder, keep_archive)
    if not folder.is_dir():
        raise DataError(f"{url}: the archive has no folder {FOLDER}")
    sort_val(folder)
    print(f"ready in {folder}")


def _provide(url: str, folder: Path, keep_archive: bool) -> None:
    with exclusive(folder):
        if folder.is_dir():
            return
        archive = fetch(url, folder.parent / file_name(url))
        unpack(archive, folder.parent)
        if not keep_archive:
            archive.unlink()
