"""The tables behind ``tools/train.py --list``: everything that a configuration may name."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .dataset import dataset_dict
from .distillers import distiller_dict
from .engine import trainer_dict
from .models import build_model, cifar_model_dict, imagenet_model_dict, tiny_imagenet_model_dict
from .models.teachers import registered_checkpoint

# Registry, data set that stands for it, classes, image size.
_FAMILIES = (
    ("CIFAR size (32 x 32)", cifar_model_dict, "cifar100", 100, 32),
    ("Tiny ImageNet (64 x 64)", tiny_imagenet_model_dict, "tiny_imagenet", 200, 64),
    ("ImageNet (224 x 224)", imagenet_model_dict, "imagenet", 1000, 224),
)

# Cross-references and literals of a docstring, which a terminal shows as plain words.
_MARKUP = re.compile(r"(?::\w+:)?`+~?([^`]*)`+")


def count_macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image [3, size, size].

    The model must be on the meta device, where a forward pass computes shapes only.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def list_everything() -> str:
    """Distillers, trainers, data sets and models as a text of tables."""
    parts = [
        _described("Distillers (DISTILLER.TYPE)", distiller_dict),
        _described("Trainers (SOLVER.TRAINER)", trainer_dict),
        _described("Data sets (DATASET.TYPE)", dataset_dict),
    ]
    for title, registry, dataset, classes, size in _FAMILIES:
        rows = [_model_row(dataset, name, classes, size) for name in registry]
        header = ("name", "parameters", "MACs", "teacher checkpoint")
        parts.append(_table(f"Models for {title}", header, rows))
    return "\n\n".join(parts)


def _model_row(dataset: str, name: str, classes: int, size: int) -> tuple[str, ...]:
    with torch.device("meta"):
        model = build_model(dataset, name, classes).eval()
    parameters = sum(p.numel() for p in model.parameters())
    path = registered_checkpoint(dataset, name)
    if dataset == "imagenet":
        state = "torchvision's" if name.startswith("ResNet") else "-"
    elif path is None:
        state = "-"
    else:
        state = "present" if path.exists() else "not downloaded"
    macs = count_macs(model, size) / 1e6
    return name, f"{parameters / 1e6:.2f} M", f"{macs:.1f} M", state


def _described(title: str, registry: dict[str, Any]) -> str:
    rows = []
    for name, entry in registry.items():
        doc = (inspect.getdoc(entry) or "").strip().splitlines()
        rows.append((name, _MARKUP.sub(r"\1", doc[0]) if doc else ""))
    return _table(title, ("name", "what"), rows)


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, tuple("-" * w for w in widths), *rows)
    ]
    return "\n".join([title, *lines])
