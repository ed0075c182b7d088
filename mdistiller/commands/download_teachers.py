"""Fetch and unpack the trained CIFAR-100 teachers that mdistiller publishes."""

from __future__ import annotations

from pathlib import Path

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.download import exclusive, fetch, file_name, unpack

URL = (
    "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Fetch the archive of the original teachers and unpack it."""
    parser = ToolParser(description=__doc__, epilog="example: python tools/download_teachers.py")
    parser.add_argument("--url", default=URL, help="address of the archive (default: %(default)s)")
    parser.add_argument(
        "--dest",
        type=Path,
        default=Path("download_ckpts"),
        help="folder to unpack into (default: ./%(default)s)",
    )
    parser.add_argument(
        "--keep-archive", action="store_true", help="do not delete the archive afterwards"
    )
    args = parser.parse_args(argv)
    _download(args.url, args.dest, args.keep_archive)


def _download(url: str, dest: Path, keep_archive: bool) -> None:
    with exclusive(dest):
        archive = fetch(url, dest / file_name(url))
        unpack(archive, dest)
        if not keep_archive:
            archive.unlink()
    print(f"unpacked into {dest}")
