"""CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32x32 pixels, 100 classes."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mdistiller.config import Config
from mdistiller.download import exclusive, fetch, unpack
from mdistiller.errors import DataError

from ._array import ArrayLoader, ImageArray, Recipe, array_loaders
from ._registry import dataset_dict

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR100

RECIPE = Recipe(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), flip=True)


@dataset_dict.register("cifar100", published=True)
def get_cifar100(cfg: Config) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """Loaders of CIFAR-100 from ``DATASET.ROOT``, where it is downloaded to if it is missing.

    Raises:
        DataError: the data are missing and cannot be downloaded, or they are corrupt.
    """
    root = Path(cfg.DATASET.ROOT).expanduser()
    train, val = _load(root, train=True, padding=4), _load(root, train=False, padding=0)
    return array_loaders(cfg, train, val, RECIPE)


def _load(root: Path, train: bool, padding: int) -> ImageArray:
    raw = _open(root, train)
    if raw is None:
        raw = _provide(root, train)
    images = torch.from_numpy(raw.data).permute(0, 3, 1, 2)
    return ImageArray(images, torch.tensor(raw.targets), num_classes=100, padding=padding)


def _open(root: Path, train: bool) -> CIFAR100 | None:
    """None if it is missing, or not what the checksums say."""
    from torchvision.datasets import CIFAR100  # only where it is needed: its import takes a second

    with suppress(RuntimeError), warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 dislike how the numpy of 2009 wrote the files.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align")
        return CIFAR100(root, train=train, download=False)
    return None


def _provide(root: Path, train: bool) -> CIFAR100:
    """The set, after its archive was unpacked by this process or another one."""
    from torchvision.datasets import CIFAR100

    with exclusive(root / CIFAR100.base_folder):
        raw = _open(root, train)
        if raw is None:
            _unpack_archive(root)
            raw = _open(root, train)
    if raw is None:
        raise DataError(
            f"{root / CIFAR100.base_folder}: corrupt, although {CIFAR100.filename} is intact; "
            "delete the folder and try again"
        )
    return raw


def _unpack_archive(root: Path) -> None:
    """Unpack the archive, after a download where it is missing."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import check_integrity

    archive = root / CIFAR100.filename
    if not archive.exists():
        try:
            fetch(CIFAR100.url, archive)
        except DataError as error:
            raise DataError(
                f"cifar100 is not in DATASET.ROOT ({root}), and downloading it failed "
                f"({error}); put {CIFAR100.filename} there"
            ) from None
    if not check_integrity(archive, CIFAR100.tgz_md5):
        raise DataError(
            f"{archive}: corrupt (wrong MD5 checksum); delete it to have it downloaded again"
        )
    unpack(archive, root)
