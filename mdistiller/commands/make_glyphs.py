"""Draw the characters of Debian's free fonts: the data set glyphs; see docs/glyphs.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.dataset.glyphs.build import SIDES, build_glyphs
from mdistiller.dataset.glyphs.font_packages import (
    PACKAGE_LIST,
    FontPackage,
    debian_packages,
    folder_packages,
    read_package_list,
)
from mdistiller.device import usable_cores
from mdistiller.errors import ConfigError, DataError

EXAMPLES = """examples:
  python tools/make_glyphs.py                                 # Debian and its derivatives
  python tools/make_glyphs.py --font-dir ~/fonts --out data/glyphs
"""


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Find the fonts, build the data set and say what is in it."""
    args = _parse(argv)
    if args.workers < 1:
        raise ConfigError(f"--workers must be 1 or greater, not {args.workers}")
    packages, missing = _packages(args)
    manifest = build_glyphs(packages, args.out, missing=missing, workers=args.workers)
    for side in SIDES:
        part = manifest[side]
        names = {font["package"] for font in part["fonts"]}
        print(
            f"{side}: {part['images']} images, {len(part['fonts'])} fonts of {len(names)} "
            f"packages, SHA-256 {part['sha256']}"
        )
    for reason, count in manifest["skipped"].items():
        print(f"left out: {count} files ({reason})")
    print(f"ready in {args.out}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/glyphs"),
        help="folder to write, DATASET.ROOT/glyphs (default: %(default)s)",
    )
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="FILE",
        default=PACKAGE_LIST,
        help="Debian packages, one a line (default: the list of this project)",
    )
    parser.add_argument(
        "--font-dir",
        type=Path,
        metavar="DIR",
        help="take the folders in DIR instead, each as a package",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="do without packages that are not installed"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=usable_cores(),
        help="processes that draw (default: one per processor)",
    )
    return parser.parse_args(argv)


def _packages(args: argparse.Namespace) -> tuple[list[FontPackage], list[str]]:
    """The packages to draw, and the names of those that are missing."""
    if args.font_dir is not None:
        return folder_packages(args.font_dir), []
    names = read_package_list(args.packages)
    packages, missing = debian_packages(names)
    if missing and not args.allow_missing:
        raise DataError(
            f"{len(missing)} of {len(names)} packages are not installed; run apt-get install "
            f"--no-install-recommends {' '.join(missing)}, or do without them: --allow-missing"
        )
    return packages, missing
