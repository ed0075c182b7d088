"""Font files for tests of the data set glyphs: matplotlib's, and damaged copies of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTCollection, TTFont

from mdistiller.dataset.glyphs.font_packages import folder_packages

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def copy_font(name: str, path: Path) -> Path:
    """The font ``name`` of matplotlib as the file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(FONTS / f"{name}.ttf", path)
    return path


def changed_font(name: str, path: Path, change) -> Path:
    """As :func:`copy_font`, after ``change(font)`` on its tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TTFont(FONTS / f"{name}.ttf") as font:
        change(font)
        font.save(path)
    return path


def renamed(family: str):
    """A change: another family name, and so another file that looks the same."""

    def change(font: TTFont) -> None:
        for record in font["name"].names:
            if record.nameID in (1, 16):
                record.string = family

    return change


def remapped(glyphs: dict[str, str | None]):
    """A change: characters that get the glyph of another one, or none."""

    def change(font: TTFont) -> None:
        for table in font["cmap"].tables:
            original = dict(table.cmap)
            for character, other in glyphs.items():
                if other is None:
                    table.cmap.pop(ord(character), None)
                elif ord(other) in original:
                    table.cmap[ord(character)] = original[ord(other)]

    return change


def collection(path: Path, *names: str) -> Path:
    """Several fonts of matplotlib in one file."""
    fonts = TTCollection()
    fonts.fonts = [TTFont(FONTS / f"{name}.ttf") for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    fonts.save(path)
    return path


def font_folder(root: Path) -> Path:
    """Three packages of which two have one font in common; returns ``root``."""
    copy_font("cmr10", root / "fonts-roman" / "cmr10.ttf")
    copy_font("cmtt10", root / "fonts-typewriter" / "ttf" / "cmtt10.ttf")
    copy_font("cmr10", root / "fonts-typewriter" / "ttf" / "twice.ttf")
    copy_font("STIXGeneral", root / "fonts-stix" / "STIXGeneral.ttf")
    return root


def fake_dpkg(folder: Path, fonts: Path) -> Path:
    """A dpkg-query for the packages in ``fonts``, and for one whose files were removed.

    As the real one it ends with 1 where it was asked for unknown packages, too. What it was
    asked is in the file ``asked`` of ``folder``.

    Returns:
        The folder to put into PATH.
    """
    text = "fonts-gone\t1-1\tconfig-files\n /usr/share/fonts/gone.ttf\n\n"
    for package in folder_packages(fonts):
        files = "".join(f" {path}\n" for path in package.files)
        text += f"{package.name}\t1:2.3-4\tinstalled\n /.\n /usr\n{files}\n"
    program = folder / "bin" / "dpkg-query"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(folder / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"print({text!r})\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    return program.parent
