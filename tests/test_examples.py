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


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In an empty folder, as after ``pip install``; its outputs are not kept in the repository."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "".join(
        text
        for cell in cells
        for output in cell.outputs
        for text in (output.get("text") or "", output.get("data", {}).get("text/plain") or "")
    )
    assert shown.count(" done ") >= 2 and "step 2: " in shown
    assert len(list(tmp_path.glob("output/demo/*/result.json"))) == 3


def test_every_example_is_here():
    found = {p.stem for p in EXAMPLES.glob("[!_]*.py")}
    assert found == {name for name, *_ in CASES}
