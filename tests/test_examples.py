"""The examples of other people's loops run and learn something."""

from __future__ import annotations

import ast
import importlib
import warnings
from functools import cache
from pathlib import Path

import pytest

from .toys import few_digits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# Module, the package it needs, shorter than shipped, and the accuracy (%) that chance stays below.
CASES = [
    ("plain_pytorch", "torch", {"epochs": 2}, 60),
    ("lightning_module", "lightning", {"epochs": 2}, 60),
    ("timm_task", "timm", {"epochs": 1, "teacher_epochs": 1, "limit": 128}, 0),
    ("huggingface_trainer", "transformers", {"steps": 40, "teacher_steps": 40}, 60),
]


@pytest.fixture(scope="module", autouse=True)
def one_teacher():
    """Two examples train the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        shared = importlib.import_module("_digits")
        patch.setattr(shared, "train_teacher", cache(shared.train_teacher))
        yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "package", "shorter", "chance"), CASES)
def test_example(name, package, shorter, chance, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package)
        assert importlib.import_module(name).main(**shorter) > chance


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    found = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbformat.validate(found)
    return found


def code_of(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.filterwarnings("ignore")
def test_the_notebooks_cells_run(notebook, tmp_path, monkeypatch, capsys):
    """In this process, on fewer images, in an empty folder, as after ``pip install``."""
    cells = code_of(notebook)
    # They are not kept in the repository.
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "notebook"}
    with few_digits(256, 64):
        for cell in cells:
            tree = ast.parse(cell.source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "quickstart.ipynb", "exec"), names)
            if last is not None:  # which a notebook shows
                print(eval(compile(ast.Expression(last.value), "quickstart.ipynb", "eval"), names))
    assert "step 2: " in capsys.readouterr().out
    assert list(names["runs"].state) == ["done"] * 2
    assert len(list(tmp_path.glob("output/demo/*/result.json"))) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "".join(
        text
        for cell in code_of(notebook)
        for output in cell.outputs
        for text in (output.get("text") or "", output.get("data", {}).get("text/plain") or "")
    )
    assert shown.count(" done ") >= 2 and "step 2: " in shown
    assert len(list(tmp_path.glob("output/demo/*/result.json"))) == 3


def test_every_example_is_here():
    found = {p.stem for p in EXAMPLES.glob("[!_]*.py")}
    assert found == {name for name, *_ in CASES}
