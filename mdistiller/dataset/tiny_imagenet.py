"""Tiny ImageNet (Stanford CS231n): 100,000 + 10,000 images of 64x64 pixels, 200 classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mdistiller.config import Config
from mdistiller.download import exclusive
from mdistiller.errors import DataError
from mdistiller.models import tiny_imagenet_model_dict

from ._files import is_hidden
from ._folder import FolderLoader, folder_loaders
from ._registry import dataset_dict

if TYPE_CHECKING:
    from torchvision import transforms

FOLDER = "tiny-imagenet-200"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)


def train_transform() -> transforms.Compose:
    """Turned by up to 20 degrees, half of the time mirrored."""
    from torchvision import transforms  # only where it is needed: its import takes a second

    return transforms.Compose(
        [transforms.RandomRotation(20), transforms.RandomHorizontalFlip(), val_transform()]
    )


def val_transform() -> transforms.Compose:
    """Only normalised."""
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


@dataset_dict.register(
    "tiny_imagenet", networks=tiny_imagenet_model_dict, image_size=64, published=True
)
def get_tiny_imagenet(cfg: Config) -> tuple[FolderLoader, FolderLoader, int, int]:
    """Loaders of ``DATASET.ROOT/tiny-imagenet-200``, whose val images are sorted if need be.

    Raises:
        DataError: the folders are missing, empty or incomplete.
    """
    root = Path(cfg.DATASET.ROOT).expanduser() / FOLDER
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; set DATASET.ROOT, or run python "
            f"tools/download_tiny_imagenet.py --dest {cfg.DATASET.ROOT}"
        )
    sort_val(root)
    return folder_loaders(cfg, root, train_transform(), val_transform())


def sort_val(root: Path) -> None:
    """Move ``val/images/*`` of the original archive into ``val/<class>/``, as its list says.

    Does nothing where that is done. Interrupted, it goes on at the next call: ``val/images``
    is removed last.

    Args:
        root: the folder tiny-imagenet-200.

    Raises:
        DataError: the list or an image is missing, or the folder cannot be written to.
    """
    images = root / "val" / "images"
    if images.is_dir():
        with exclusive(images):
            if images.is_dir():
                _sort(root, images)


def _sort(root: Path, images: Path) -> None:
    try:
        for source, target in _moves(root):
            target.parent.mkdir(exist_ok=True)
            # Missing if an earlier call has moved it.
            with suppress(FileNotFoundError):
                os.replace(source, target)
            if not target.is_file():
                raise DataError(f"{source}: missing; unpack the archive of {FOLDER} again")
        _remove_empty(images)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{images}: cannot be sorted into classes ({error})") from None


def _moves(root: Path) -> Iterator[tuple[Path, Path]]:
    val = root / "val"
    table = val / "val_annotations.txt"
    if not table.is_file():
        raise DataError(f"{table}: missing, so the classes of val/images are unknown")
    classes = {entry.name for entry in (root / "train").iterdir() if entry.is_dir()}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        # An empty name or ".." would stand for a folder.
        if wnid not in classes or Path(name).name != name or name in ("", ".."):
            raise DataError(f"{table}: line {number} is not an image name and a class of train/")
        yield val / "images" / name, val / wnid / name


def _remove_empty(folder: Path) -> None:
    for entry in filter(lambda e: is_hidden(e.name), list(folder.iterdir())):
        os.replace(entry, folder.parent / entry.name)
    left = next(folder.iterdir(), None)
    if left is not None:
        raise DataError(f"{left}: not in val_annotations.txt; remove it")
    folder.rmdir()
