"""The rooms of the house: no import runs upwards or in a circle, wherever in a file it stands."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Ground floor first. A single module is a room of its own; what is not listed is the ground.
FLOORS = [
    ("config",),
    ("models",),
    ("dataset",),
    ("weighting",),
    ("distillers",),
    ("engine",),
    ("export", "listing"),
    ("experiments",),
    ("report",),
    ("commands",),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in (ROOT / "mdistiller").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that ``name`` imports, also within functions and TYPE_CHECKING."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return {module for module in found if module in known and module != name}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def floor(module: str) -> int:
    return FLOOR_OF.get(".".join(module.split(".")[1:2]), 0)


def test_nobody_imports_upwards():
    upwards = [
        f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"
        for name, others in graph().items()
        for other in others
        if name != "mdistiller" and floor(other) > floor(name)
    ]
    assert upwards == []


def circle(imported: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next one, the last being the first; empty without any."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_nobody_imports_in_a_circle():
    assert circle(graph()) == []
    assert set(circle({"a": {"b"}, "b": {"a"}, "c": {"a"}})) == {"a", "b"}


def test_a_hidden_circle_is_found(tmp_path):
    hidden = {
        "a": "def f():\n    from p import b\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f\n",
    }
    known = {f"p.{name}": tmp_path / f"{name}.py" for name in hidden}
    for name, text in hidden.items():
        known[f"p.{name}"].write_text(text, encoding="utf-8")
    assert {name: imports(name, path, known) for name, path in known.items()} == {
        "p.a": {"p.b"},
        "p.b": {"p.a"},
    }


# Their imports take from a second to as long as torch's own, in every process.
SLOW = {"torchvision", "torchjd", "sklearn", "ray", "onnx", "onnxruntime", "wandb", "IPython"}


def test_packages_that_load_slowly_are_imported_where_they_are_used():
    found = set()
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                packages = {alias.name.split(".")[0] for alias in node.names}
            else:
                packages = {(getattr(node, "module", None) or "").split(".")[0]}
            found |= {(name, package) for package in packages & SLOW}
    # The command that draws figures of networks' answers is the one that needs it.
    assert found == {("mdistiller.report.visualize", "sklearn")}
