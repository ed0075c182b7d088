"""Data sets: :func:`get_dataset` gives the loaders that a configuration asks for.

To add one, register a function of the configuration under a name, with the networks that fit
its images where those are not the ones for small images, and settings of its own, if any::

    @dataset_dict.register("my_set", networks={"mynet": MyNet}, image_size=48)
    def get_my_set(cfg):
        return train_loader, val_loader, num_data, num_classes

with two :class:`Loader` objects, for instance two :class:`ArrayLoader`. In a file of your own
that EXPERIMENT.IMPORTS names, this is all.
"""

from __future__ import annotations

from mdistiller.config import Config
from mdistiller.errors import ConfigError

from . import (  # noqa: F401
    cifar100,
    digits,
    fashion_mnist,
    glyphs,
    image_folder,
    imagenet,
    tiny_imagenet,
)
from ._array import ArrayLoader, ImageArray, Recipe, array_loaders
from ._contrastive import ContrastiveSampler, ContrastiveSettings, contrastive_settings
from ._folder import FolderLoader, folder_loaders
from ._loader import Loader
from ._noise import NOISE_KINDS
from ._registry import dataset_dict
from ._selection import validates_on_heldout
from .networks import (
    build_model,
    check_network,
    image_size,
    load_teacher,
    model_dict_for,
    registered_checkpoint,
)

__all__ = [
    "ArrayLoader",
    "ContrastiveSampler",
    "ContrastiveSettings",
    "NOISE_KINDS",
    "FolderLoader",
    "ImageArray",
    "Loader",
    "Recipe",
    "array_loaders",
    "build_model",
    "check_network",
    "contrastive_settings",
    "dataset_dict",
    "folder_loaders",
    "get_dataset",
    "image_size",
    "load_teacher",
    "model_dict_for",
    "registered_checkpoint",
    "validates_on_heldout",
]


def get_dataset(cfg: Config) -> tuple[Loader, Loader, int, int]:
    """The loaders of ``cfg.DATASET.TYPE``.

    Sets in memory (cifar100, fashion_mnist, glyphs, digits) live on ``SOLVER.DEVICE`` and use no
    worker processes, so ``DATASET.NUM_WORKERS`` has no effect on them. A batch size beyond the
    number of images gives one batch with all of them. With ``DATASET.HOLDOUT`` the second loader
    has training images that are held out, not the test images, unless ``DATASET.VALIDATE`` is
    "test"; the first one gives batches of them, too (``Loader.heldout_stream``).

    Args:
        cfg: reads DATASET, SOLVER.BATCH_SIZE, SOLVER.DEVICE, EXPERIMENT.SEED, DISTILLER.TYPE
            and, for a contrastive distiller, CRD.MODE and CRD.NCE.K.

    Returns:
        (train_loader, val_loader, number of training images, number of classes).

    Raises:
        UnknownNameError: no such data set.
        DataError: the data are missing or damaged.
        ConfigError: the data set does not know ``DATASET.LABEL_NOISE``.
    """
    loaders = dataset_dict[cfg.DATASET.TYPE](cfg)
    if cfg.DATASET.LABEL_NOISE and getattr(loaders[0], "wrong_labels", None) is None:
        raise ConfigError(
            f"DATASET.LABEL_NOISE has no effect on {cfg.DATASET.TYPE}, which makes its loaders "
            "without array_loaders or folder_loaders; set it to 0"
        )
    return loaders
