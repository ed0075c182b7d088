"""Reading checkpoints, whoever wrote them, without executing anything that is in them."""

from __future__ import annotations

import errno
import pickle
import re
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdistiller.errors import CheckpointError

from .foreign import name_of
from .heads import shaped_like

# Under which keys programs keep a network's weights, the likeliest first.
_WEIGHTS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module"),
    *("student", "weights", "params", "backbone"),
)
# A smoothed copy of the weights that lies beside them; taken where there is nothing else.
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)($|_)|^averag", re.IGNORECASE)
# What wrappers put in front of the keys of the network inside.
_WRAPPERS = ("module.", "model.", "net.", "network.", "student.", "backbone.")
# The same within keys, and what a counter of operations (thop) leaves in a state dict.
_WITHIN = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_COUNTED = re.compile(r"(^|\.)total_(ops|params)$")
# Modules whose objects can act; whatever else a file names is replaced by an empty dictionary.
_HARMLESS = {"argparse", "collections", "datetime", "decimal", "enum", "pathlib", "types", "uuid"}
_MEANT = frozenset(sys.stdlib_module_names | {"torch", "numpy", "mdistiller"}) - _HARMLESS


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the file ``path`` into ``model``; all its keys and shapes must agree.

    Of several sets of weights in the file, and ways to strip the keys' prefixes, the first that
    fits is taken (see :func:`read_state_dict`).

    Raises:
        CheckpointError: the file cannot be read or is of another network. The model is then
            unchanged.
    """
    _load_first(path, lambda state: model)


def load_network(model: nn.Module, path: str | Path) -> nn.Module:
    """As :func:`load_weights`, but with the classifier that the file is for, which is returned.

    See :func:`~mdistiller.models.heads.shaped_like`; without a sign of another one this is
    ``model`` itself.
    """
    return _load_first(path, lambda state: shaped_like(model, state))


def _load_first(path: str | Path, network: Callable[[dict[str, Tensor]], nn.Module]) -> nn.Module:
    """The network for the first reading of ``path`` that fits it, with these weights."""
    first: tuple[nn.Module, list[str]] | None = None
    for state in _readings(path, read_checkpoint(path)):
        model = network(state)
        problems = _differences(model.state_dict(), state)
        if not problems:
            _check_finite(path, state)
            model.load_state_dict(state)
            return model
        first = first or (model, problems)
    # A file without any reading has been refused before.
    assert first is not None
    model, problems = first
    raise CheckpointError(
        f"{path} does not fit {name_of(model)}: {'; '.join(problems)}; use the "
        "architecture and the data set that the file was trained with"
    )


def _check_finite(path: str | Path, state: dict[str, Tensor]) -> None:
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path} holds numbers that are not finite ({len(broken)} of {len(state)} tensors, the "
            f"first is {broken[0]}); its training has failed, give an earlier one"
        )


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

    Read are a bare state dict and one in a dictionary under any of the usual names ("model",
    "state_dict", "net", "model_state", ...), of several the plain rather than the averaged one;
    and the state of a whole distiller (a run's ``latest``), of which the student is taken.
    Prefixes that all keys share ("module.", "_orig_mod.", "model.", ...) are removed.

    Raises:
        CheckpointError: see :func:`read_checkpoint`; also if the file holds no tensors.
    """
    return next(_readings(path, read_checkpoint(path, map_location)))


def _readings(path: str | Path, content: Any) -> Iterator[dict[str, Tensor]]:
    """What the file's ``content`` may mean as a state dict, the likeliest first; at least one."""
    found = False
    for state in _state_dicts(content):
        found = True
        state = {_WITHIN.sub("", k): v for k, v in state.items() if not _COUNTED.search(k)}
        for bare in _unwrapped(state):
            # A distiller's, or a network among others, such as beside a loss with weights.
            parts = [part for prefix in ("student.", *_WRAPPERS) if (part := _below(prefix, bare))]
            if "student." in {key[:8] for key in bare}:
                yield from _unwrapped(parts[0])
            yield bare
            for part in parts:
                yield from _unwrapped(part)
    if not found:
        raise CheckpointError(
            f"{path} holds no weights; give a file made by "
            'torch.save({"model": model.state_dict()}, path)'
        )


def _unwrapped(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """``state`` without the prefixes that all its keys share, then as it is."""
    bare = state
    while prefix := next((p for p in _WRAPPERS if all(k.startswith(p) for k in bare)), None):
        bare = _below(prefix, bare)
    yield bare
    if bare is not state:
        yield state


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _state_dicts(content: Any, depth: int = 5) -> Iterator[dict[str, Tensor]]:
    """The dictionaries of tensors by name within ``content``, the likeliest weights first."""
    if isinstance(content, (list, tuple)) and depth:  # such as (epoch, state dict)
        for part in content:
            yield from _state_dicts(part, depth - 1)
    if not isinstance(content, dict):
        return
    named = {key: _tensor(value) for key, value in content.items() if isinstance(key, str)}
    inner = {key: v for key, v in named.items() if isinstance(v, (dict, list, tuple))}
    if depth:
        usual = [key for key in _WEIGHTS if key in inner]
        others = [k for k in inner if k not in usual and not k.startswith("optim")]
        averaged = [k for k in others if _AVERAGED.search(k)]
        for key in usual:
            yield from _state_dicts(inner[key], depth - 1)
        state = {key: value for key, value in named.items() if isinstance(value, Tensor)}
        if state:
            yield state
        for key in [*(k for k in others if k not in averaged), *averaged]:
            yield from _state_dicts(inner[key], depth - 1)
    elif state := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield state


def _tensor(value: Any) -> Any:
    """``value``, as a tensor if it is an array of numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))  # copied, writable
    return value


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> Any:
    """What ``torch.save`` wrote to ``path``, or the tensors of a safetensors file.

    Nothing in the file is executed: tensors, numpy's numbers and arrays, and plain Python data are
    read, settings objects of other programs (an argparse.Namespace, a configuration) are replaced
    by empty dictionaries.

    Raises:
        CheckpointError: the file is missing, damaged, something else, or asks for objects that
            could act.
    """
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path, device=str(map_location or "cpu"))
        content = _load(path, map_location)
        _check_sums(path)
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check the path") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a position that the file, being cut off, does not have
            raise _unreadable(path, error) from None
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); give a readable file"
        ) from None
    except pickle.UnpicklingError as error:
        refused = _refused_global(error)
        if refused:
            raise CheckpointError(
                f"{path} is refused, for it asks for the Python object {refused}, and "
                "nothing of it was run; fetch it again, or save model.state_dict() instead"
            ) from None
        raise _unreadable(path, error) from None
    except Exception as error:  # on arbitrary bytes the unpickler fails in arbitrary ways
        raise _unreadable(path, error) from None


class _Inert:
    """Stands in for an object that a file names: whatever is made of it is an empty dictionary."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def _load(path: str | Path, map_location: Any) -> Any:
    """``torch.load`` with an inert stand-in for each object of a module that is not ``_MEANT``."""
    allowed = _numpy_data()
    for _ in range(100):  # more kinds of objects than a settings file has
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")  # torch muses about pickle protocols
                return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            name = _refused_global(error)
            if not name or name.partition(".")[0] in _MEANT or (_Inert, name) in allowed:
                raise
            allowed.append((_Inert, name))
    raise pickle.UnpicklingError("too many kinds of objects")


def _refused_global(error: pickle.UnpicklingError) -> str | None:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else None


def _is_safetensors(path: str | Path) -> bool:
    """Whether the file begins as that format does: the header's length, then a JSON header."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


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


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    other = _other_kind(path)
    if other:
        return CheckpointError(f"{path} is {other}")
    return CheckpointError(
        f"{path} is damaged or no torch checkpoint ({type(error).__name__}); "
        "fetch or train it again"
    )


# How files begin that are given for checkpoints, and what to do about each.
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"<", "a web page or XML, not a checkpoint; fetch the file itself"),
    (b"\x1f\x8b", "compressed with gzip; unpack it and give the checkpoint inside"),
    (b"BZh", "compressed with bzip2; unpack it and give the checkpoint inside"),
    (b"\xfd7zXZ", "compressed with xz; unpack it and give the checkpoint inside"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it and give the checkpoint inside"),
    (b"Rar!", "a RAR archive; unpack it and give the checkpoint inside"),
    (b"\x89HDF", "an HDF5 file (Keras?), not a torch checkpoint; convert it"),
    (b"\x93NUMPY", "a numpy array, not a torch checkpoint"),
)


def _other_kind(path: str | Path) -> str | None:
    """What the file is instead of a checkpoint, and what to do; None if that cannot be told."""
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        if not start:
            return "empty; fetch or train it again"
        for beginning, kind in _BEGINNINGS:
            if start.lstrip().startswith(beginning):
                return kind
        if not any(start):
            return "damaged, it begins with zeros only; fetch or train it again"
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                names = archive.getnames()
            return f"an archive of {', '.join(names[:3])}, ...; unpack it and give one of them"
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any("/code/" in name for name in names):
                return "a TorchScript program; save model.state_dict() instead"
            if not any(name.endswith("data.pkl") for name in names):
                return f"an archive of {', '.join(names[:3])}, ...; unpack it and give one of them"
            return None
        text = start.decode("ascii")
        # Two letters begin every zip archive: a checkpoint of which nothing else has come.
        if not re.fullmatch(r"[ -~\s]+", text) or "PK".startswith(text):
            return None
        if text.lstrip()[:1] in "{[":
            return "a JSON text, not a checkpoint"
        return f"a text ({' '.join(text.split())[:40]!r}), not a checkpoint; fetch the file itself"
    except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile):
        return None


def _numpy_data() -> list[Any]:
    """What pickled numpy numbers and arrays refer to.

    mdistiller's ``latest`` holds such numbers: the learning rates after the first decay.
    """
    makers = {"scalar": np.float64(0), "_reconstruct": np.zeros(1)}
    # The same functions under the module names of numpy 1 and 2.
    named = [
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for name, value in makers.items()
        for core in ("core", "_core")
    ]
    codes = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
    dtypes = {type(np.dtype(code)) for code in codes}
    return [*named, np.ndarray, np.dtype, *dtypes]
