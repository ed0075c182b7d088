"""Building networks by name, and reading the checkpoints that make them teachers."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdistiller.errors import CheckpointError
from mdistiller.registry import Registry
from mdistiller.shipped import checkout

from .cifar import cifar_model_dict, tiny_imagenet_model_dict
from .imagenet import imagenet_model_dict

# Top-1 accuracy on CIFAR-100 in per cent of the teachers that mdistiller publishes.
PUBLISHED_TOP1: dict[str, float] = {
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "ResNet50": 79.34,
    "wrn_40_2": 75.61,
    "vgg13": 74.64,
}

_MODELS = Registry("data set")
for _name in ("cifar100", "fashion_mnist", "digits", "glyphs"):
    _MODELS[_name] = cifar_model_dict
_MODELS["tiny_imagenet"] = tiny_imagenet_model_dict
_MODELS["imagenet"] = imagenet_model_dict

_IMAGE_SIZES = {"tiny_imagenet": 64, "imagenet": 224}

# The registries' checkpoints were trained on these, also where others share the networks.
_WITH_CHECKPOINTS = ("cifar100", "tiny_imagenet")


def model_dict_for(dataset: str) -> dict[str, Any]:
    """The registry of networks for the data set called ``dataset`` (DATASET.TYPE)."""
    return _MODELS[dataset]


def image_size(dataset: str) -> int:
    """Height and width in pixels of the images of ``dataset``; 32 for all small ones."""
    return _IMAGE_SIZES.get(dataset, 32)


def build_model(dataset: str, name: str, num_classes: int) -> nn.Module:
    """The network called ``name`` for ``dataset``, with random weights."""
    entry = model_dict_for(dataset)[name]
    constructor = entry[0] if isinstance(entry, tuple) else entry
    return constructor(num_classes=num_classes)


def load_teacher(dataset: str, name: str, num_classes: int, ckpt: str = "") -> nn.Module:
    """A trained network in eval mode.

    Args:
        dataset: DATASET.TYPE.
        name: DISTILLER.TEACHER, a name in the data set's registry.
        num_classes: number of logits.
        ckpt: DISTILLER.TEACHER_CKPT, a file that :func:`read_state_dict` reads. Empty stands
            for the registry's file (searched for from the current folder, then from the
            repository), or torchvision's weights for ImageNet.

    Raises:
        UnknownNameError: there is no such data set or network.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    if dataset == "imagenet" and not ckpt:
        return imagenet_model_dict[name](pretrained=True, num_classes=num_classes).eval()
    model = build_model(dataset, name, num_classes)
    load_weights(model, Path(ckpt).expanduser() if ckpt else _registered_file(dataset, name))
    return model.eval()


def registered_checkpoint(dataset: str, name: str) -> Path | None:
    """The registry's checkpoint file for the teacher called ``name``; None if it has none.

    Searched for from the current folder, then from the repository; it need not exist.
    """
    relative = model_dict_for(dataset)[name][1] if dataset in _WITH_CHECKPOINTS else None
    if relative is None:
        return None
    here, root = Path(relative), checkout()
    elsewhere = here if root is None or here.exists() else root / relative
    return elsewhere if elsewhere.exists() else here


def _registered_file(dataset: str, name: str) -> Path:
    """The existing checkpoint file of the registry for the teacher called ``name``."""
    path = registered_checkpoint(dataset, name)
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


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the file ``path`` into ``model``; all its keys and shapes must agree.

    Raises:
        CheckpointError: the file cannot be read or is of another network. The model is then
            unchanged.
    """
    state = read_state_dict(path)
    problems = _differences(model.state_dict(), state)
    if problems:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}; use the "
            "architecture and the data set that the file was trained with"
        )
    model.load_state_dict(state)


def _differences(own: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """What keeps the weights ``found`` from being those of a network with ``own``, in words."""
    problems = []
    classifier = [key for key, value in own.items() if value.dim() >= 2][-1]
    classes = len(own[classifier])
    if classifier in found and len(found[classifier]) != classes:
        problems.append(f"the file has {len(found[classifier])} classes, the network {classes}")
    # Files from before torch 0.4.1 have no batch counters, and torch does without.
    missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in found if k not in own]
    reshaped = [
        f"{k} (file {list(found[k].shape)}, network {list(own[k].shape)})"
        for k in own
        if k in found and found[k].shape != own[k].shape
    ]
    for kind, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", reshaped),
    ):
        if keys:
            more = ", ..." if len(keys) > 3 else ""
            problems.append(f"{len(keys)} {kind}: {', '.join(keys[:3])}{more}")
    return problems


def read_state_dict(path: str | Path, map_location: Any = "cpu") -> dict[str, Tensor]:
    """The weights of one network in the file ``path``.

    Read are a bare state dict, one under the key "model", and the state of a whole distiller
    (a run's ``latest``), of which the student is taken. A leading "module." is removed.

    Raises:
        CheckpointError: see :func:`read_checkpoint`; also if the file holds no tensors.
    """
    content = read_checkpoint(path, map_location)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    items = content.items() if isinstance(content, dict) else ()
    state = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no weights; give a file made by "
            'torch.save({"model": model.state_dict()}, path)'
        )
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    student = {
        key.removeprefix("student."): value
        for key, value in state.items()
        if key.startswith("student.")
    }
    return student or state


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> Any:
    """What ``torch.save`` wrote to ``path``: tensors, numpy scalars and plain Python data.

    Nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or holds other Python objects.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            warnings.simplefilter("ignore")  # torch muses about pickle protocols
            content = torch.load(path, map_location=map_location, weights_only=True)
        _check_sums(path)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check the path") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a position that the file, being cut off, does not have
            raise _damaged(path, error) from None
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); give a readable file"
        ) from None
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} is refused, for it asks for the Python object {refused.group(1)}, and "
                "nothing of it was run; fetch it again, or save model.state_dict() instead"
            ) from None
        raise _damaged(path, error) from None
    except Exception as error:  # on arbitrary bytes the unpickler fails in arbitrary ways
        raise _damaged(path, error) from None


def _check_sums(path: str | Path) -> None:
    """Compare the checksums in a file of the zip format, which ``torch.load`` does not.

    Without this, a flipped bit in a tensor would go unnoticed.

    Raises:
        zipfile.BadZipFile: a part of the file is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC == 0:  # torch can be told to write none
                continue
            with archive.open(member) as file:
                while file.read(1 << 20):
                    pass


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or no torch checkpoint ({type(error).__name__}); "
        "fetch or train it again"
    )


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number refers to.

    mdistiller's ``latest`` holds such numbers: the learning rates after the first decay.
    """
    make_scalar = np.float64(0).__reduce__()[0]
    # The same function under the module names of numpy 1 and 2.
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    codes = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
    dtypes = {type(np.dtype(code)) for code in codes}
    return [*((make_scalar, name) for name in names), np.dtype, *dtypes]
