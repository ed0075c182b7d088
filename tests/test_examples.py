"""The examples of other people's loops run and learn something."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# Module, the package it needs, shorter than shipped, and the accuracy (%) that chance stays below.
CASES = [
    ("plain_pytorch", "torch", {"epochs": 3}, 60),
    ("lightning_module", "lightning", {"epochs": 3}, 60),
    ("timm_task", "timm", {"epochs": 1, "teacher_epochs": 1, "limit": 256}, 0),
    ("huggingface_trainer", "transformers", {"steps": 60, "teacher_steps": 60}, 60),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "package", "shorter", "chance"), CASES)
def test_example(name, package, shorter, chance, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package)
        assert importlib.import_module(name).main(**shorter) > chance


def test_every_example_is_here():
    found = {p.stem for p in EXAMPLES.glob("[!_]*.py")}
    assert found == {name for name, *_ in CASES}
