"""The state of somebody else's module as tensors and plain types, for a checkpoint.

torchjd's stateful methods keep theirs in buffers that start as None and in attributes, which
``state_dict`` does not reach and which a checkpoint read without unpickling cannot hold.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_BOOKKEEPING = frozenset(vars(nn.Module()))


class _Unsupported(Exception):
    """A value that is no state, such as a submodule, a function or a solver's problem."""


def module_state(module: nn.Module) -> dict[str, Any]:
    """What ``module`` and its submodules remember, arguments of their constructors left out.

    Returns:
        By submodule and attribute, made of tensors and plain types; it shares no memory with
        the module.
    """
    return {
        path: {name: _encode(value) for name, value in _attributes(part).items()}
        for path, part in module.named_modules()
    }


def load_module_state(module: nn.Module, state: dict[str, Any], device: torch.device) -> None:
    """Continue from :func:`module_state`.

    Args:
        module: of the same class and with the same arguments.
        state: what :func:`module_state` returned.
        device: where tensors go that were not on the CPU.

    Raises:
        KeyError: ``state`` is that of another module.
    """
    for path, part in module.named_modules():
        for name, value in state[path].items():
            setattr(part, name, _decode(value, device))


def _attributes(part: nn.Module) -> dict[str, Any]:
    arguments = set(inspect.signature(type(part)).parameters)
    candidates = {k: v for k, v in vars(part).items() if k not in _BOOKKEEPING}
    found = {}
    for name, value in {**candidates, **part._buffers}.items():
        if name in arguments or name.removeprefix("_") in arguments:
            continue
        try:
            _encode(value)
        except _Unsupported:
            continue
        found[name] = value
    return found


def _encode(value: Any) -> dict[str, Any]:
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"kind": "plain", "value": value}
    if isinstance(value, Tensor):
        kind = "host tensor" if value.device.type == "cpu" else "tensor"
        return {"kind": kind, "value": value.detach().clone()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
        return {"kind": "array", "value": torch.from_numpy(np.array(value))}
    if isinstance(value, torch.dtype):
        return {"kind": "dtype", "value": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"kind": "device", "value": None}
    if isinstance(value, (tuple, list)):
        return {"kind": type(value).__name__, "value": [_encode(v) for v in value]}
    raise _Unsupported(type(value).__name__)


def _decode(entry: dict[str, Any], device: torch.device) -> Any:
    kind, value = entry["kind"], entry["value"]
    if kind == "tensor":
        return value.clone().to(device)
    if kind == "host tensor":
        return value.clone().cpu()
    if kind == "array":
        return value.cpu().numpy().copy()
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "device":
        return device
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](_decode(v, device) for v in value)
    return value
