"""Fashion-MNIST (Xiao et al., arXiv:1708.07747): 60,000 + 10,000 grey images, 10 classes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from mdistiller.config import Config
from mdistiller.download import fetch
from mdistiller.errors import DataError

from ._array import ArrayLoader, ImageArray, Recipe, array_loaders
from ._idx import read_idx
from ._registry import dataset_dict

# Of the training images padded to 32x32, border included.
RECIPE = Recipe(mean=(0.2190,) * 3, std=(0.3318,) * 3, flip=True)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataset_dict.register("fashion_mnist")
def get_fashion_mnist(cfg: Config) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """Loaders of Fashion-MNIST as 32x32 images with three equal channels.

    Its four IDX files, gzipped or not, are looked for in ``DATASET.ROOT``, its subfolders
    ``fashion_mnist`` and ``FashionMNIST/raw`` (torchvision's), and where Debian's package
    dataset-fashion-mnist puts them; found nowhere, they are downloaded to torchvision's folder.

    Raises:
        DataError: the data are missing and cannot be downloaded, or they are corrupt.
    """
    root = Path(cfg.DATASET.ROOT).expanduser()
    download_folder = root / "FashionMNIST" / "raw"
    places = (root, root / "fashion_mnist", download_folder, DEBIAN_FOLDER)
    files = next(filter(None, map(_find, places)), None) or _download(download_folder, root)
    train = _load(files, "train", padding=4)
    val = _load(files, "val", padding=0)
    return array_loaders(cfg, train, val, RECIPE)


def _find(folder: Path) -> dict[str, Path] | None:
    """The four files by their names, or None if ``folder`` lacks one."""
    found = {}
    for name in (*_FILES["train"], *_FILES["val"]):
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        if path is None:
            return None
        found[name] = path
    return found


def _download(folder: Path, root: Path) -> dict[str, Path]:
    """The four files by their names, from torchvision's source."""
    # Only here: the import takes a second.
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    mirror, found = FashionMNIST.mirrors[0], {}
    for name, md5 in FashionMNIST.resources:
        path = folder / name
        try:
            fetch(f"{mirror}{name}", path)
        except DataError as error:
            raise DataError(
                f"fashion_mnist is not in DATASET.ROOT ({root}), and downloading it failed "
                f"({error}); put its four IDX files there"
            ) from None
        if not check_integrity(path, md5):
            raise DataError(
                f"{path}: corrupt (wrong MD5 checksum); delete it to have it downloaded again"
            )
        found[path.stem] = path
    return found


def _load(files: dict[str, Path], side: str, padding: int) -> ImageArray:
    image_file, label_file = (files[name] for name in _FILES[side])
    images, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{image_file}: images of 28x28 pixels expected, not {images.shape[1:]}")
    if len(images) != len(labels):
        raise DataError(f"{label_file}: {len(labels)} labels for {len(images)} images")
    pixels = F.pad(torch.tensor(images), [2] * 4)
    grey_as_rgb = pixels[:, None].expand(-1, 3, -1, -1)
    return ImageArray(grey_as_rgb, torch.tensor(labels), num_classes=10, padding=padding)
