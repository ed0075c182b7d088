"""The 94 printable ASCII characters in the free fonts of Debian: grey images of 32x32 pixels.

Built by ``tools/make_glyphs.py``; docs/glyphs.md says how. A hard set that needs no download
beyond Debian's packages: many classes resemble one another, and the test's fonts are unseen.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from mdistiller.config import Config
from mdistiller.dataset._array import ArrayLoader, ImageArray, Recipe, array_loaders
from mdistiller.dataset._registry import dataset_dict
from mdistiller.errors import DataError

from .build import FORMAT, MANIFEST, SIDES, array_file
from .render import CHARACTERS, IMAGE_SIZE

# Of the training images. A mirrored character is another one, or none, so no flips.
RECIPE = Recipe(mean=(0.1551,) * 3, std=(0.3403,) * 3, flip=False)

FOLDER = "glyphs"
_CHUNK = 1 << 20


@dataset_dict.register("glyphs")
def get_glyphs(cfg: Config) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """Loaders of ``DATASET.ROOT/glyphs``, 94 characters in many fonts, three equal channels.

    The class of an image is its character's code point less 33. The images of a font follow one
    another: image i is of character i % 94 in font i // 94 of the manifest.

    Raises:
        DataError: the files are missing, or not those that their manifest describes.
    """
    folder = Path(cfg.DATASET.ROOT).expanduser() / FOLDER
    hashes = _read_hashes(folder)
    train = _load(folder / array_file("train"), hashes["train"], padding=4)
    val = _load(folder / array_file("test"), hashes["test"], padding=0)
    return array_loaders(cfg, train, val, RECIPE)


def _read_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each side's file, from the manifest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"glyphs is not in DATASET.ROOT ({folder}); run python tools/make_glyphs.py --out "
            f"{folder}"
        ) from None
    except (OSError, ValueError):
        raise _damaged(path, "is no JSON", folder) from None
    try:
        hashes = {side: str(manifest[side]["sha256"]) for side in SIDES}
        readable = manifest["format"] == FORMAT
    except (KeyError, TypeError):
        readable = False
    if not readable:
        raise _damaged(path, "is not of this version's format", folder)
    return hashes


def _load(path: Path, sha256: str, padding: int) -> ImageArray:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise _damaged(path, f"cannot be read, {error.strerror}", path.parent) from None
    # Before anything is made of the content.
    if digest.hexdigest() != sha256:
        raise _damaged(path, "corrupt, its SHA-256 is not that of the manifest", path.parent)
    # Mapped, so that a run on a subset holds in memory what it uses.
    images = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)).flatten(0, 1)
    grey_as_rgb = images[:, None].expand(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    targets = torch.arange(len(images)) % len(CHARACTERS)
    return ImageArray(grey_as_rgb, targets, len(CHARACTERS), padding)


def _damaged(path: Path, what: str, folder: Path) -> DataError:
    return DataError(f"{path}: {what}; run python tools/make_glyphs.py --out {folder}")
