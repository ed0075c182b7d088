"""Networks by the name of the data set whose images they take, and its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mdistiller.errors import CheckpointError
from mdistiller.models import PUBLISHED_TOP1, load_network
from mdistiller.models.foreign import PRETRAINED, build_foreign, check_foreign, is_foreign
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


def check_network(dataset: str, name: str, size: int = 0) -> None:
    """Refuse a name that is neither in the registry for ``dataset`` nor of a network of others.

    Raises:
        UnknownNameError, ConfigError: see ``check_foreign``.
    """
    if is_foreign(name):
        check_foreign(name)
    else:
        model_dict_for(dataset, size)[name]  # noqa: B018


def build_model(
    dataset: str,
    name: str,
    num_classes: int,
    size: int = 0,
    *,
    input_size: int = 0,
    features: Sequence[str] = (),
    role: str = "STUDENT",
) -> nn.Module:
    """The network called ``name`` for ``dataset``, with random weights.

    Args:
        input_size: height and width of the images that a network of others is to take; 0: those
            of the data set.
        features: ``DISTILLER.FEATURES.<role>``, of a network of others.
    """
    if is_foreign(name):
        size = input_size or image_size(dataset, size)
        return _foreign(name, num_classes, size, features, role)
    entry = model_dict_for(dataset, size)[name]
    constructor = entry[0] if isinstance(entry, tuple) else entry
    return constructor(num_classes=num_classes)


def _foreign(
    name: str,
    num_classes: int,
    size: int,
    features: Sequence[str],
    role: str,
    pretrained: bool = False,
) -> nn.Module:
    key = f"DISTILLER.FEATURES.{role}"
    return build_foreign(name, num_classes, size, named=features, key=key, pretrained=pretrained)


def load_teacher(
    dataset: str,
    name: str,
    num_classes: int,
    ckpt: str = "",
    size: int = 0,
    *,
    input_size: int = 0,
    features: Sequence[str] = (),
    role: str = "TEACHER",
) -> nn.Module:
    """A trained network in eval mode.

    Args:
        dataset: DATASET.TYPE.
        name: DISTILLER.TEACHER, a name in the data set's registry, or of a network of others.
        num_classes: number of logits.
        ckpt: DISTILLER.TEACHER_CKPT, a file that ``read_state_dict`` reads, or "pretrained" for
            the weights that torchvision or timm publish. Empty stands for the registry's file
            (searched for from the current folder, then from the repository), or torchvision's
            weights for ImageNet.
        size, input_size, features, role: as for :func:`build_model`.

    Raises:
        UnknownNameError: there is no such data set or network.
        CheckpointError: the weights are missing, damaged or of another network.
        ConfigError: a network of others does not take such images, or has no such features.
    """
    if is_foreign(name) and ckpt == PRETRAINED:
        size = input_size or image_size(dataset, size)
        return _foreign(name, num_classes, size, features, role, pretrained=True).eval()
    if is_foreign(name):
        # Before anything is built: what is missing is the file.
        path = Path(ckpt).expanduser() if ckpt else _registered_file(dataset, name, size)
        options: dict[str, Any] = {"input_size": input_size, "features": features, "role": role}
        return load_network(build_model(dataset, name, num_classes, size, **options), path).eval()
    ckpt = "" if ckpt == PRETRAINED else ckpt
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
    if is_foreign(name):
        return None
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
            + (f", or to {PRETRAINED}" if is_foreign(name) else "")
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
