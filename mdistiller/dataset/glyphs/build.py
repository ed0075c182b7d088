"""Making the data set ``glyphs`` from font files: drawing, leaving out, splitting, writing."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fontTools import version as fonttools_version
from PIL import __version__ as pillow_version
from PIL import features

from mdistiller.errors import DataError

from .font_packages import FontPackage
from .render import CHARACTERS, OTHER_SUFFIXES, OUTLINE_SUFFIXES, Face, render_file
from .split import split_packages

MANIFEST = "manifest.json"
FORMAT = 1
SIDES = ("train", "test")


def array_file(side: str) -> str:
    """The file with the images of a side: [fonts, 94, 32, 32] uint8."""
    return f"{side}.npy"


@dataclass(frozen=True)
class _Font:
    """A font that is in the data set, and where it is from."""

    package: FontPackage
    path: Path
    face: Face
    images: np.ndarray


def build_glyphs(
    packages: Sequence[FontPackage], out: Path, *, missing: Sequence[str] = (), workers: int = 1
) -> dict[str, Any]:
    """Draw the fonts of ``packages`` and write the data set to the folder ``out``.

    The same files give the same arrays with the same FreeType, for any number of workers. A
    data set that ``out`` holds already is replaced when the new one is complete.

    Args:
        missing: packages that were not there, for the manifest.
        workers: processes that draw.

    Returns:
        The manifest, as ``out/manifest.json`` has it.

    Raises:
        DataError: there are too few usable fonts, ``out`` is something else, or it cannot be
            written.
    """
    _refuse_other_content(out)
    skipped: Counter[str] = Counter()
    fonts = list(_distinct(_draw(packages, workers, skipped), skipped))
    sides = split_packages(
        [font.package.name for font in fonts],
        [font.face.family for font in fonts],
        [font.images for font in fonts],
    )
    if not sides:
        raise DataError(
            f"{len(fonts)} usable fonts that belong together, which cannot be split into "
            "training and test; more packages are needed"
        )
    manifest = {
        "format": FORMAT,
        "made_with": {
            "pillow": pillow_version,
            "freetype": features.version("freetype2"),
            "fonttools": fonttools_version,
        },
        "missing_packages": list(missing),
        "skipped": dict(sorted(skipped.items())),
    }
    arrays = {}
    for side in SIDES:
        chosen = [font for font in fonts if sides[font.package.name] == side]
        images = np.stack([font.images for font in chosen])
        arrays[side] = _npy(images)
        mean, std = _moments(images)
        manifest[side] = {
            "sha256": hashlib.sha256(arrays[side]).hexdigest(),
            "images": len(chosen) * len(CHARACTERS),
            "mean": mean,
            "std": std,
            "fonts": [_describe(font) for font in chosen],
        }
    _write(out, manifest, arrays)
    return manifest


def _draw(packages: Sequence[FontPackage], workers: int, skipped: Counter[str]) -> Iterator[_Font]:
    """The usable fonts by package and file; counts the others in ``skipped`` by reason."""
    found = []
    for package in sorted(packages, key=lambda package: package.name):
        for path in package.files:
            name = path.name.lower()
            other = next((why for end, why in OTHER_SUFFIXES.items() if name.endswith(end)), None)
            if name.endswith(OUTLINE_SUFFIXES) and path.is_file():
                found.append((package, path))
            elif other is not None:
                skipped[other] += 1
    drawn = _render_all([path for _, path in found], workers)
    for (package, path), faces in zip(found, drawn, strict=True):
        for face in faces:
            if face.images is None:
                skipped[face.reason] += 1
            else:
                yield _Font(package, path, face, face.images)


def _render_all(paths: Sequence[Path], workers: int) -> Iterator[list[Face]]:
    if workers == 1:
        yield from map(render_file, paths)
        return
    # A fork would copy the threads' locks of this process, but not the threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(render_file, paths, chunksize=8)


def _distinct(fonts: Iterator[_Font], skipped: Counter[str]) -> Iterator[_Font]:
    """Of fonts that are the same file, or look the same, the first one."""
    files, looks = set(), set()
    for font in fonts:
        file = (font.face.sha256, font.face.index)
        look = hashlib.sha256(font.images.tobytes()).digest()
        if file in files:
            skipped["the same file as another"] += 1
        elif look in looks:
            skipped["the same images as another"] += 1
        else:
            yield font
        files.add(file)
        looks.add(look)


def _describe(font: _Font) -> dict[str, Any]:
    return {
        "package": font.package.name,
        "version": font.package.version,
        "file": str(font.path),
        "index": font.face.index,
        "sha256": font.face.sha256,
        "family": font.face.family,
    }


def _moments(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of values in 0..1, to five digits; for the recipe."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
    return round(float(mean), 5), round(float(std), 5)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


# ---- files -----------------------------------------------------------------------------------


def _refuse_other_content(out: Path) -> None:
    if out.exists() and not (out.is_dir() and _is_replaceable(out)):
        raise DataError(f"{out}: exists and is no data set of glyphs; choose another folder")


def _is_replaceable(folder: Path) -> bool:
    ours = {MANIFEST, *map(array_file, SIDES)}
    return {path.name for path in folder.iterdir()} <= ours


def _write(out: Path, manifest: dict[str, Any], arrays: dict[str, bytes]) -> None:
    """All files in a folder beside ``out``, which then takes its place."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            new = Path(folder) / out.name
            new.mkdir()
            for side, content in arrays.items():
                (new / array_file(side)).write_bytes(content)
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            (new / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
            if out.exists():
                shutil.rmtree(out)
            os.replace(new, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from None
