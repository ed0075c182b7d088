"""Which font files there are, and which package each belongs to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mdistiller.dataset._files import is_hidden
from mdistiller.errors import DataError

# Debian's packages with free fonts that the glyphs are made of.
PACKAGE_LIST = Path(__file__).with_name("glyph_font_packages.txt")

# The package's files follow its name, version and state, each after a space.
_FORMAT = "${Package}\t${Version}\t${db:Status-Status}\n${db-fsys:Files}\n"


@dataclass(frozen=True)
class FontPackage:
    """A set of files that are kept together when fonts are split: a Debian package, a folder."""

    name: str
    version: str
    files: tuple[Path, ...]


def read_package_list(path: Path) -> list[str]:
    """The names in a file, one a line; ``#`` begins a comment.

    Raises:
        DataError: the file cannot be read or names no package.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of packages ({error})") from None
    names = [line.partition("#")[0].strip() for line in lines]
    found = sorted({name for name in names if name})
    if not found:
        raise DataError(f"{path}: names no package; write one a line")
    return found


def debian_packages(names: Sequence[str]) -> tuple[list[FontPackage], list[str]]:
    """The installed ones of ``names`` with all their files, and the names that are missing.

    Raises:
        DataError: this system has no dpkg.
    """
    try:
        answer = subprocess.run(
            ["dpkg-query", "--show", "--showformat", _FORMAT, "--", *names],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise DataError(
            "there is no dpkg-query here, so the fonts cannot be found by Debian's packages; "
            "use --font-dir with a folder of fonts"
        ) from None
    installed = _parse(answer.stdout)
    missing = sorted(set(names) - {package.name for package in installed})
    return installed, missing


def _parse(text: str) -> list[FontPackage]:
    """What dpkg-query prints in :data:`_FORMAT`: files are indented, a package's name is not."""
    files: dict[tuple[str, str], list[Path]] = {}
    current: list[Path] = []
    for line in text.splitlines():
        if line.startswith(" "):
            current.append(Path(line[1:]))
        elif line:
            name, version, state = line.split("\t")
            current = []
            if state == "installed":
                files[name, version] = current
    return [FontPackage(*key, tuple(sorted(found))) for key, found in sorted(files.items())]


def folder_packages(root: Path) -> list[FontPackage]:
    """Each folder in ``root`` as a package, with the files in it at any depth, hidden ones not.

    Raises:
        DataError: there is no folder in ``root``.
    """
    folders = (
        sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
        if root.is_dir()
        else []
    )
    if not folders:
        raise DataError(f"{root}: no folders in it; give one that holds a folder for each font")
    return [FontPackage(folder.name, "", tuple(sorted(_files(folder)))) for folder in folders]


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path
