"""Networks by the name of the data set whose images they take, and its teachers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mdistiller.errors import CheckpointError
from mdistiller.models import PUBLISHED_TOP1, load_network
from mdistiller.shipped import checkout

from ._registry import dataset_dict


def model_dict_for(dataset: str, size: int = 0) -> Mapping[str, Any]:
    """The registry of networks for the data set called ``dataset`` (DATASET.TYPE).

    Here and below ``size`` is DATASET.IMAGE_SIZE, 0 for the data set's own.
    """
    return dataset_dict.fitting(dataset, size).networks


def image_size(dataset: str, size: int = 0) -> int:
    """Height and width in pixels of the images of ``dataset``; 32 for all small ones."""
    return dataset_dict.fitting(dataset, size).image_size


def build_model(dataset: str, name: str, num_classes: int, size: int = 0) -> nn.Module:
    """The network called ``name`` for ``dataset``, with random weights."""
    entry = model_dict_for(dataset, size)[name]
    constructor = entry[0] if isinstance(entry, tuple) else entry
    return constructor(num_classes=num_classes)


def load_teacher(
    dataset: str, name: str, num_classes: int, ckpt: str = "", size: int = 0
) -> nn.Module:
    """A trained network in eval mode.

    Args:
        dataset: DATASET.TYPE.
        name: DISTILLER.TEACHER, a name in the data set's registry.
        num_classes: number of logits.
        ckpt: DISTILLER.TEACHER_CKPT, a file that ``read_state_dict`` reads. Empty stands for
            the registry's file (searched for from the current folder, then from the
            repository), or torchvision's weights for ImageNet.

    Raises:
        UnknownNameError: there is no such data set or network.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    fitting = dataset_dict.fitting(dataset, size)
    entry = fitting.networks[name]
    if fitting.published and not ckpt and not isinstance(entry, tuple):
        return entry(pretrained=True, num_classes=num_classes).eval()
    model = build_model(dataset, name, num_classes, size)
    path = Path(ckpt).expanduser() if ckpt else _registered_file(dataset, name, size)
    return load_network(model, path).eval()


def registered_checkpoint(dataset: str, name: str, size: int = 0) -> Path | None:
    """The registry's checkpoint file for the teacher called ``name``; None if it has none.

    Searched for from the current folder, then from the repository; it need not exist.
    """
    fitting = dataset_dict.fitting(dataset, size)
    entry = fitting.networks[name]
    relative = entry[1] if fitting.published and isinstance(entry, tuple) else None
    if relative is None:
        return None
    here, root = Path(relative), checkout()
    elsewhere = here if root is None or here.exists() else root / relative
    return elsewhere if elsewhere.exists() else here


def _registered_file(dataset: str, name: str, size: int) -> Path:
    """The existing checkpoint file of the registry for the teacher called ``name``."""
    path = registered_checkpoint(dataset, name, size)
    if path is None:
        raise CheckpointError(
            f"there is no checkpoint for the teacher {name} on {dataset}; train {name} with "
            "DISTILLER.TYPE NONE and set DISTILLER.TEACHER_CKPT to its student_latest"
        )
    if path.exists():
        return path
    train = f"train {name} and set DISTILLER.TEACHER_CKPT to its student_latest"
    if dataset == "cifar100":
        config = f"configs/cifar100/teachers/{name}.yaml"
        train = f"run `python tools/train.py --cfg {config}` and set DISTILLER.TEACHER_CKPT"
        if name in PUBLISHED_TOP1:
            train = f"run `python tools/download_teachers.py`, or {train}"
    raise CheckpointError(f"{path}: the checkpoint of the teacher {name} is missing; {train}")
