"""Fonts as images: the printable ASCII characters of a font file, one small picture each."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTCollection, TTFont
from PIL import Image, ImageDraw, ImageFont

# "!" to "~"; the class of a character is its code point less that of "!".
CHARACTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]
IMAGE_SIZE = 32
GLYPH_SIZE = 24

OUTLINE_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Other font files, which are not drawn. Most are further forms of an outline font beside them.
OTHER_SUFFIXES = {
    ".woff": "web font",
    ".woff2": "web font",
    ".eot": "web font",
    ".pfb": "Type 1 font",
    ".pfa": "Type 1 font",
    ".t1": "Type 1 font",
    ".pcf": "bitmap font",
    ".pcf.gz": "bitmap font",
    ".bdf": "bitmap font",
    ".otb": "bitmap font",
}

# Pixels per em when drawn: so large that even a full stop is reduced afterwards, not enlarged.
_EM = 256
_MARGIN = 8
# Capitals-only fonts have one shape for two characters; l, I, | and ! may have the same one.
# A shape of more characters than these is a placeholder.
_MOST_ALIKE = 4


class UnusableFontError(Exception):
    """A font that cannot be used; the message says why in two to five words."""


@dataclass(frozen=True)
class Face:
    """A font: one file, or one of the fonts in a collection.

    Attributes:
        index: position in the collection, 0 in a file of one font.
        sha256: of the whole file, hexadecimal.
        family: name of the typeface as the font says it; "" if it says none.
        images: [94, 32, 32] uint8, the characters in the order of :data:`CHARACTERS`, white on
            black; None if the font cannot be used.
        reason: why not.
    """

    index: int
    sha256: str
    family: str = ""
    images: np.ndarray | None = None
    reason: str = ""


def render_file(path: Path) -> list[Face]:
    """The fonts in ``path``, a file with one of :data:`OUTLINE_SUFFIXES`.

    Equal files give equal images with the same FreeType (the library that Pillow draws with).
    """
    # What fontTools overlooks in a damaged table is no news; what matters is checked here.
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    try:
        content = path.read_bytes()
    except OSError:
        return [Face(0, "", reason="cannot be read")]
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        fonts = _open(content)
    except Exception:  # a damaged file can make the parser raise anything
        return [Face(0, sha256, reason="damaged")]
    return [_face(content, sha256, index, font) for index, font in enumerate(fonts)]


def _open(content: bytes) -> list[TTFont]:
    if content.startswith(b"ttcf"):
        return list(TTCollection(io.BytesIO(content), lazy=True).fonts)
    return [TTFont(io.BytesIO(content), lazy=True)]


def _face(content: bytes, sha256: str, index: int, font: TTFont) -> Face:
    family = ""
    try:
        family = _family(font)
        _check_characters(font)
        images = _draw_all(
            ImageFont.truetype(
                io.BytesIO(content), _EM, index, layout_engine=ImageFont.Layout.BASIC
            )
        )
    except UnusableFontError as error:
        return Face(index, sha256, family, reason=str(error))
    except Exception:  # as above, or FreeType cannot scale it
        return Face(index, sha256, family, reason="cannot be drawn")
    return Face(index, sha256, family, images)


def _family(font: TTFont) -> str:
    if "name" not in font:
        return ""
    names = font["name"]
    return " ".join((names.getDebugName(16) or names.getDebugName(1) or "").split())


def _check_characters(font: TTFont) -> None:
    """Refuse a font without outlines, or without a glyph of its own for each character."""
    if not any(table in font for table in ("glyf", "CFF ", "CFF2")):
        raise UnusableFontError("bitmap font")
    cmap = font.getBestCmap()
    if cmap is None:
        raise UnusableFontError("no Unicode character map")
    placeholder = font.getGlyphOrder()[0]
    if any(cmap.get(ord(character), placeholder) == placeholder for character in CHARACTERS):
        raise UnusableFontError("lacks characters")


def _draw_all(font: ImageFont.FreeTypeFont) -> np.ndarray:
    inks = [_draw(font, character) for character in CHARACTERS]
    shapes = Counter((ink.size, ink.tobytes()) for ink in inks)
    if max(shapes.values()) > _MOST_ALIKE:
        raise UnusableFontError("placeholders instead of characters")
    return np.stack([_fit(ink) for ink in inks])


def _draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """The character in its own size, cropped to its ink."""
    left, top, right, bottom = map(int, font.getbbox(character))
    canvas = Image.new("L", (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN))
    ImageDraw.Draw(canvas).text((_MARGIN - left, _MARGIN - top), character, fill=255, font=font)
    ink = canvas.getbbox()
    if ink is None:
        raise UnusableFontError("a character is blank")
    return canvas.crop(ink)


def _fit(ink: Image.Image) -> np.ndarray:
    """``ink`` with a longer side of 24 pixels in the middle of 32x32."""
    scale = GLYPH_SIZE / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    small = ink.resize((width, height), Image.Resampling.BOX)
    image.paste(small, ((IMAGE_SIZE - width) // 2, (IMAGE_SIZE - height) // 2))
    return np.asarray(image)
