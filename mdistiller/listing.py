"""The tables behind ``tools/train.py --list``: everything that a configuration may name.

The table of methods in the docs is made here, too.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from .config.cfg import CROSSBATCH_PREFIX
from .dataset import (
    build_model,
    dataset_dict,
    image_size,
    model_dict_for,
    registered_checkpoint,
)
from .distillers import distiller_dict
from .engine import trainer_dict

# Classes of a data set whose networks are listed; of any other 100.
_CLASSES = {"tiny_imagenet": 200, "imagenet": 1000}

# Cross-references and literals of a docstring, which a terminal shows as plain words.
_MARKUP = re.compile(r"(?::\w+:)?`+~?([^`]*)`+")


class _Macs(TorchFunctionMode):
    """Adds up an image's multiply-accumulates in convolutions and linear layers."""

    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (F.conv1d, F.conv2d, F.conv3d, F.linear):
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            self.total += out.shape[1:].numel() * weight.shape[1:].numel()
        return out


def count_macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image [3, size, size].

    Args:
        model: on the meta device; a forward pass there computes the shapes in Python, ten times
            slower than one of no image at all on the CPU, with memory as it is for weights.
    """
    state = {}
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        make = torch.empty if values.is_floating_point() else torch.zeros  # an index must be valid
        state[name] = make(values.shape, dtype=values.dtype)
    try:
        with torch.inference_mode(), _Macs() as counted:
            functional_call(model, state, torch.empty(0, 3, size, size))
    except Exception:  # a network of one's own that cannot do without an image
        with torch.inference_mode(), _Macs() as counted:
            model(torch.empty(1, 3, size, size, device="meta"))
    return counted.total


def list_everything() -> str:
    """Distillers, trainers, data sets and models as a text of tables."""
    parts = [
        _table(
            "Distillers (DISTILLER.TYPE); cost: " + cost_in_words(),
            ("name", *_ABOUT, "cost", "what"),
            _distiller_rows(),
        ),
        _described("Trainers (SOLVER.TRAINER)", trainer_dict),
        _described("Data sets (DATASET.TYPE)", dataset_dict),
    ]
    for datasets in _families():
        first = datasets[0]
        rows = [_model_row(first, name) for name in model_dict_for(first)]
        size = image_size(first)
        title = f"Models for {', '.join(datasets)} ({size} x {size})"
        parts.append(_table(title, ("name", "parameters", "MACs", "teacher checkpoint"), rows))
    return "\n\n".join(parts)


def _families() -> list[list[str]]:
    """Data sets that share their networks, those with published teachers first."""
    families: dict[tuple[int, int], list[str]] = {}
    for name in sorted(dataset_dict, key=lambda n: not dataset_dict.fitting(n).published):
        family = (id(model_dict_for(name)), image_size(name))
        families.setdefault(family, []).append(name)
    return list(families.values())


def _model_row(dataset: str, name: str) -> tuple[str, ...]:
    with torch.device("meta"):
        model = build_model(dataset, name, _CLASSES.get(dataset, 100)).eval()
    parameters = sum(p.numel() for p in model.parameters())
    path = registered_checkpoint(dataset, name)
    if dataset == "imagenet":
        state = "torchvision's" if name.startswith("ResNet") else "-"
    elif path is None:
        state = "-"
    else:
        state = "present" if path.exists() else "not downloaded"
    macs = count_macs(model, image_size(dataset)) / 1e6
    return name, f"{parameters / 1e6:.2f} M", f"{macs:.1f} M", state


# What a distiller's class says of itself.
_ABOUT = ("family", "needs", "year")


def _about(entry: Any) -> tuple[str, ...]:
    return tuple(str(getattr(entry, key, "") or "-") for key in _ABOUT)


def _distiller_rows() -> list[tuple[str, ...]]:
    return [
        (name, *_about(entry), _cost(name), _first_line(entry))
        for name, entry in distiller_dict.items()
    ]


def methods_table() -> str:
    """Markdown: every method that comes with this package, by year, and how costs were measured."""
    lines = [
        "| `DISTILLER.TYPE` | paper | year | family | needs | cost | cost, cross-batch |",
        "|---|---|---|---|---|---|---|",
    ]
    own = {n: e for n, e in distiller_dict.items() if e.__module__.startswith("mdistiller.")}
    plain = (n for n in own if not n.startswith(CROSSBATCH_PREFIX))
    for name in sorted(plain, key=lambda n: own[n].year):
        family, needs, year = _about(own[name])
        cells = (year, family, needs, _cost(name), _cost(CROSSBATCH_PREFIX + name))
        lines.append(f"| `{name}` | {_paper(own[name])} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Cost: {cost_in_words()}.", ""])


def _paper(entry: Any) -> str:
    """The first line of the method's module, which names its paper."""
    return (
        (sys.modules[entry.__module__].__doc__ or "").splitlines()[0].partition("; ")[0].rstrip(".")
    )


@cache
def _measured() -> dict[str, Any]:
    """The record of ``benchmarks/methods.py``."""
    file = Path(__file__).with_name("step_costs.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _cost(name: str) -> str:
    """Of a step, in KD's; a dash for a method that was not measured."""
    cost = _measured()["costs"].get(name)
    return "-" if cost is None else f"{cost:.2f}"


def cost_in_words() -> str:
    """What a cost is, and how it was measured."""
    known = _measured()
    views = (f"{_cost(p + 'MLKD, two views')}" for p in ("", CROSSBATCH_PREFIX))
    return (
        f"a training step's time in KD's, {' to '.join(known['pair'])}, {known['batch']} images, "
        f"{known['rounds']} rounds in which all take turns, {known['how']}; {known['clock']}, "
        f"{known['machine']['device']}, {known['machine']['threads']} thread, load average "
        f"{' to '.join(map(str, known['load']))}. MLKD with two views: {' and '.join(views)}"
    )


def _described(title: str, registry: dict[str, Any]) -> str:
    return _table(title, ("name", "what"), [(n, _first_line(e)) for n, e in registry.items()])


def _first_line(entry: Any) -> str:
    doc = (inspect.getdoc(entry) or "").strip().splitlines()
    return _MARKUP.sub(r"\1", doc[0]) if doc else ""


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, tuple("-" * w for w in widths), *rows)
    ]
    return "\n".join([title, *lines])
