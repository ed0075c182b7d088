"""Anybody's images, in folders by class or with a list of labels; see docs/own-data.md."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from mdistiller.config import Config
from mdistiller.errors import ConfigError, DataError
from mdistiller.models import cifar_model_dict, imagenet_model_dict

from ._array import ImageArray, Recipe, array_loaders
from ._decode import read_image
from ._files import ImageFiles
from ._folder import check_classes, file_loaders, leave_out_broken, read_pixels
from ._loader import Loader
from ._registry import dataset_dict
from ._selection import validates_on_heldout
from ._statistics import mean_and_std

# Sets that take no more than this as bytes [N, 3, IMAGE_SIZE, IMAGE_SIZE] are held in memory.
MEMORY_MIB = 512
_SMALLEST = 32
# Up to this size the networks for small images fit, above those for ImageNet.
_LARGEST_OF_SMALL = 64
_OTHER_NAMES_OF_VAL = ("valid", "validation", "dev", "test", "eval")


def _networks(size: int) -> Mapping[str, Any]:
    return cifar_model_dict if size <= _LARGEST_OF_SMALL else imagenet_model_dict


@dataset_dict.register("image_folder", networks=_networks)
def get_image_folder(cfg: Config) -> tuple[Loader, Loader, int, int]:
    """Loaders of your own images in ``DATASET.ROOT/{train,val}/<class>/*``.

    Where there is no ``train``, ROOT itself holds the classes; without ``val`` DATASET.HOLDOUT of
    the training images are validated on. A folder with a ``labels.csv`` (columns file and label)
    has its classes from there. Each image is turned upright, and the largest square in its middle
    scaled to DATASET.IMAGE_SIZE. Small sets are held in memory and augmented on the device of the
    run; others, and all with randaugment, are read by worker processes.

    Raises:
        ConfigError: DATASET.IMAGE_SIZE is too small.
        DataError: folders or images are missing or damaged, or there is one class only.
    """
    data = cfg.DATASET
    size = data.IMAGE_SIZE
    if size < _SMALLEST:
        raise ConfigError(
            f"DATASET.IMAGE_SIZE must be {_SMALLEST} or greater for image_folder, not {size}: the "
            "height and width in pixels to which every image is brought"
        )
    train, val = _open(cfg, partial(_read_square, size=size))
    count = len(train) + (0 if val is None else len(val))
    in_memory = data.AUGMENT != "randaugment" and count * 3 * size**2 <= MEMORY_MIB * 2**20
    if not in_memory:
        mean, std = mean_and_std(cfg, train)
        return file_loaders(
            cfg, train, val or train, _transform(cfg, mean, std), _transform(cfg, mean, std, False)
        )
    padding = size // 8 if data.AUGMENT == "crop_flip" else 0
    images = _array(cfg, train, padding)
    mean, std = mean_and_std(cfg, train, images.images)
    return array_loaders(
        cfg,
        images,
        images if val is None else _array(cfg, val, 0),
        Recipe(mean, std, flip=data.AUGMENT == "crop_flip"),
    )


def _open(cfg: Config, loader: Any) -> tuple[ImageFiles, ImageFiles | None]:
    """The images to train with, and those to validate on unless these are held out."""
    root = Path(cfg.DATASET.ROOT).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; DATASET.ROOT must hold train/<class>/* and val/<class>/*, or "
            "<class>/* and DATASET.HOLDOUT say how many images to validate on"
        )
    split = (root / "train").is_dir()
    train = ImageFiles(root / "train" if split else root, loader=loader)
    val = None
    if split and (root / "val").is_dir():
        val = ImageFiles(root / "val", loader=loader)
        check_classes(root, train, val)
    elif not validates_on_heldout(cfg):
        raise DataError(f"{root / 'val'}: no such folder; {_advice(root)}")
    if len(train.classes) < 2:
        raise DataError(
            f"{train.root}: all images are of one class, {train.classes[0]!r}; there must be two"
        )
    if cfg.DATASET.SKIP_BROKEN:
        for files in filter(None, (train, val)):
            leave_out_broken(files, cfg.DATASET.NUM_WORKERS)
    return train, val


def _advice(root: Path) -> str:
    other = next((name for name in _OTHER_NAMES_OF_VAL if (root / name).is_dir()), None)
    rename = "" if other is None else f"rename {root / other}, or "
    return (
        f"{rename}set DATASET.HOLDOUT to the number of training images to hold out for validation"
    )


def _read_square(path: str, size: int) -> Image.Image:
    """The largest square in the middle of an image, upright, as size x size RGB pixels."""
    image = read_image(path, upright=True)
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def _array(cfg: Config, files: ImageFiles, padding: int) -> ImageArray:
    pixels = read_pixels(files, cfg.DATASET.NUM_WORKERS)
    return ImageArray(pixels, torch.tensor(files.targets), len(files.classes), padding)


def _transform(cfg: Config, mean: Any, std: Any, train: bool = True) -> Any:
    from torchvision import transforms  # only where it is needed: its import takes a second

    size, kind = cfg.DATASET.IMAGE_SIZE, cfg.DATASET.AUGMENT if train else "none"
    steps: list[Any] = []
    if kind != "none":
        steps = [transforms.RandomCrop(size, size // 8), transforms.RandomHorizontalFlip()]
    if kind == "randaugment":
        steps.append(transforms.RandAugment())
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
