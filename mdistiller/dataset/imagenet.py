"""ImageNet-1k (Russakovsky et al., arXiv:1409.0575) in two folders of 1,000 classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mdistiller.config import Config
from mdistiller.errors import DataError
from mdistiller.models import imagenet_model_dict

from ._folder import FolderLoader, folder_loaders
from ._registry import dataset_dict

if TYPE_CHECKING:
    from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train_transform() -> transforms.Compose:
    """A random part of the image as 224x224 pixels, half of the time mirrored."""
    from torchvision import transforms  # only where it is needed: its import takes a second

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def val_transform() -> transforms.Compose:
    """The middle 224x224 pixels of the image scaled to a shorter side of 256."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


@dataset_dict.register("imagenet", networks=imagenet_model_dict, image_size=224, published=True)
def get_imagenet(cfg: Config) -> tuple[FolderLoader, FolderLoader, int, int]:
    """Loaders of ``DATASET.ROOT/imagenet/{train,val}/<class>/*``.

    Raises:
        DataError: the folders are missing or empty, or have different classes.
    """
    root = Path(cfg.DATASET.ROOT).expanduser() / "imagenet"
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; DATASET.ROOT must hold imagenet/train and imagenet/val "
            "with one folder per class"
        )
    return folder_loaders(cfg, root, train_transform(), val_transform())
