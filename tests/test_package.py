"""What ``pip install`` gives: a wheel in an empty folder, without the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = (
    *("mdistiller", "configs", "pyproject.toml", "setup.py", "requirements.txt"),
    *("README.md", "LICENSE"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as pip does it, which takes two seconds more."""
    folder = tmp_path_factory.mktemp("package")
    source, wheels = folder / "source", folder / "wheels"
    source.mkdir()
    for name in BUILT_FROM:
        found = ROOT / name
        if found.is_dir():
            shutil.copytree(found, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(found, source / name)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, wheels, cwd=source)
    (made,) = wheels.glob("*.whl")
    return made


def test_a_wheel_has_every_file_of_the_package_and_its_configurations(wheel):
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in file.namelist() if name.endswith("/entry_points.txt"))
        assert "mdistiller-train = mdistiller.commands.train:main" in file.read(points).decode()
    expected = set()
    for folder, place in (("mdistiller", "mdistiller"), ("configs", "mdistiller/configs")):
        files = (p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc")
        expected |= {f"{place}/{p.relative_to(ROOT / folder).as_posix()}" for p in files}
    assert len(expected) > 200 and packed == expected


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment that has the wheel, and this one's dependencies."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment)
    python = environment / "bin/python"
    (packages,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", python]
    run(*pip, "install", "--no-deps", "--no-compile", wheel)
    # Not its .pth files, one of which leads to this repository.
    (packages / "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]))
    return environment / "bin"


def run(*command, cwd: Path | None = None) -> str:
    """The output of a program that must succeed, started outside the repository."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The scripts as they were installed, in one process, which loads torch once. The dry run would time
# steps of its networks to say what runs take; that steps work is seen by the training before it.
SCRIPTS = """
import json, runpy, sys
from mdistiller.experiments.estimate import Estimate
Estimate._time = lambda *_: 1e-6
for sys.argv in json.loads(sys.argv[1]):
    # Neither trainings nor evaluations: they take longer to load than a short run takes.
    assert not {"sklearn", "torch._dynamo", "torchvision"} & sys.modules.keys()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
print(sys.modules["mdistiller"].__file__)
"""


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(installed, tmp_path):
    few = ("DATASET.SUBSET", 70, "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]")
    few = (*few, "LOG.PREFIX", "out", "EXPERIMENT.NAME", "x")
    student = "out/digits/x/student_latest"
    lines = {
        "train": ("--cfg", "configs/digits/vanilla.yaml", *few),
        "eval": ("-m", "resnet8", "-c", student, "-d", "digits"),
        "reproduce": ("table1", "--dataset", "digits", "--trials", 1, "--dry-run"),
    }
    commands = [[installed / f"mdistiller-{name}", *words] for name, words in lines.items()]
    words = json.dumps([[str(word) for word in command] for command in commands])
    said = run(installed / "python", "-c", SCRIPTS, words, cwd=tmp_path)
    assert (tmp_path / student).exists()
    assert "top-1" in said and "left: 22 runs" in said
    assert str(installed.parent) in said.splitlines()[-1]
    scripts = {path.name: path.read_text() for path in installed.glob("mdistiller-*")}
    assert {f"mdistiller-{n}" for n in ("train", "eval", "reproduce", "report")} <= scripts.keys()
    assert all(text.startswith(f"#!{installed}/python") for text in scripts.values())


def test_every_command_has_a_tool_and_an_entry_point():
    commands = {p.stem for p in (ROOT / "mdistiller/commands").glob("[!_]*.py")}
    assert commands == {p.stem for p in (ROOT / "tools").glob("*.py")}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    points = dict(re.findall(r'^mdistiller-(\S+) = "mdistiller\.commands\.(\w+):main"', text, re.M))
    assert set(points.values()) == commands
    assert all(name.replace("-", "_") == module for name, module in points.items())


def test_every_dependency_has_a_lower_bound():
    """``make test-lowest`` installs exactly these."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [x for x in lines if x and not x.startswith("#")]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    named = re.findall(r'"([^"]+)"', extras)
    packages += [x for x in named if not x.startswith("mdistiller[")]
    assert len(packages) > 15
    unbounded = [x for x in packages if not re.fullmatch(r"[\w.-]+(\[[a-z,]+\])?>=[0-9.]+", x)]
    assert unbounded == []
