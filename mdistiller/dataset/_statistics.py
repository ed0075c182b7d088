"""The mean and deviation of a set's channels: given, or computed once and kept by the images."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mdistiller.config import Config
from mdistiller.console import log
from mdistiller.download import exclusive
from mdistiller.errors import ConfigError, DataError

from ._files import ImageFiles
from ._folder import read_pixels
from ._selection import select

FILE = "mean_std.json"
# Of a set that is not in memory so many images are looked at, evenly spaced.
SAMPLE = 10_000

Triple = tuple[float, float, float]


def mean_and_std(
    cfg: Config, train: ImageFiles, pixels: Tensor | None = None
) -> tuple[Triple, Triple]:
    """Per channel, of values in 0..1: DATASET.MEAN and STD, or those of the training images.

    Computed ones are of all pixels of the images as they are brought to DATASET.IMAGE_SIZE, but
    for those held out, and are kept in ``DATASET.ROOT/mean_std.json`` by that size and what is
    held out: later runs, ``--resume`` and tools/eval.py use the same, also where images were
    added since, of which there is a warning.

    Args:
        pixels: of all images [N, 3, H, W] uint8; None to read them.

    Raises:
        ConfigError: one of MEAN and STD is given without the other.
        DataError: a channel has one value in all images, or the file is damaged.
    """
    given = cfg.DATASET.MEAN, cfg.DATASET.STD
    if all(given):
        return _triple(given[0]), _triple(given[1])
    if any(given):
        raise ConfigError("DATASET.MEAN and DATASET.STD go together; set both or neither")
    path, key = Path(cfg.DATASET.ROOT).expanduser() / FILE, str(cfg.DATASET.IMAGE_SIZE)
    if cfg.DATASET.HOLDOUT:
        key += f", {cfg.DATASET.HOLDOUT} held out by seed {cfg.DATASET.SUBSET_SEED}"
    found = _read(path).get(key)
    if found is None:
        with exclusive(path):
            found = _read(path).get(key)
            if found is None:
                found = _compute(cfg, train, pixels)
                _keep(path, {**_read(path), key: found})
    if found["images"] != len(train):
        warnings.warn(
            f"{path}: mean and std are of {found['images']} training images, and now there are "
            f"{len(train)}; delete it to have them computed anew, for a teacher and students"
        )
    log(f"mean {found['mean']}, std {found['std']} of the training images, from {path}")
    return _triple(found["mean"]), _triple(found["std"])


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = map(float, values)
    return red, green, blue


def _compute(cfg: Config, train: ImageFiles, pixels: Tensor | None) -> dict:
    heldout = select(cfg, torch.tensor(train.targets)).holdout
    used = torch.ones(len(train), dtype=torch.bool)
    if heldout is not None:
        used[heldout] = False
    rows = used.nonzero().flatten()
    if pixels is None:
        rows = rows[:: -(-len(rows) // SAMPLE)]
        samples = [train.samples[row] for row in rows.tolist()]
        pixels = read_pixels(train, cfg.DATASET.NUM_WORKERS, samples)
    elif heldout is not None:
        pixels = pixels[rows]
    count, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for part in pixels.split(1024):
        values = part.double().transpose(0, 1).flatten(1) / 255
        count, total = count + values.shape[1], total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    if (std < 1e-4).any():
        raise DataError(
            f"{train.root}: a colour channel has the same value in all images; look at them, or "
            "set DATASET.MEAN and DATASET.STD"
        )
    # Four digits say enough, and can be copied.
    values = ([round(v, 4) for v in x.tolist()] for x in (mean, std))
    return dict(zip(("mean", "std", "images"), (*values, len(train)), strict=True))


def _read(path: Path) -> dict:
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
        for entry in sizes.values():
            if len(entry["mean"]) != 3 or len(entry["std"]) != 3 or min(entry["std"]) <= 0:
                raise ValueError("no three numbers")
            int(entry["images"])
        return sizes
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read ({reason}); delete it to have it computed anew"
        ) from None


def _keep(path: Path, sizes: dict) -> None:
    part = path.with_name(f".{FILE}.part")
    try:
        part.write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error.strerror}): the mean and the std of the images are "
            "computed for each run; set DATASET.MEAN and DATASET.STD to them"
        )
