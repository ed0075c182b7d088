"""Image files as RGB pixels of 8 bits, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mdistiller.errors import DataError

# Formats whose 32-bit integers, as Pillow reads them, are numbers of 16 bits.
_16_BIT_FORMATS = ("PNG", "PPM")


def read_image(path: str | Path, upright: bool = False) -> Image.Image:
    """The image in a file as RGB; of several frames the first.

    Grey becomes three equal channels; 16-bit grey is scaled from 0..65535 to 0..255; what is
    transparent shows white.

    Args:
        upright: turn it as its EXIF orientation says, as cameras ask for.

    Raises:
        DataError: 32-bit or floating-point grey, whose black and white are not known.
        OSError, ValueError, ...: whatever Pillow makes of a file that is no sound image.
    """
    with open(path, "rb") as file, Image.open(file) as image:
        kind = image.format
        return _rgb(ImageOps.exif_transpose(image) if upright else image, kind)


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _16_BIT_FORMATS):
        # Pillow's own conversion cuts every value above 255 to 255.
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"mode {image.mode}, numbers whose black and white are not known; save it with 8 or "
            "16 bits a channel"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    colour = image.convert("RGBA")
    white = Image.new("RGBA", colour.size, "white")
    return Image.alpha_composite(white, colour).convert("RGB")
