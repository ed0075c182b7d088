"""What README and docs promise: the example runs, the links lead somewhere."""

from __future__ import annotations

import html
import importlib
import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mdistiller
from mdistiller.commands.report import main as report
from mdistiller.distillers import distiller_dict
from mdistiller.engine import trainer_dict

from .toys import config, loader, networks

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES = [*FROM_ROOT, *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/results/archive.md"]
# Made by the site from docstrings.
MADE = ROOT / "docs" / "reference"


def test_readmes_own_distiller_trains_both_ways(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "distiller_dict.register" in block)
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        for name, trainer in (("MSE", "base"), ("CROSSBATCH_MSE", "crossbatch")):
            cfg = config(tmp_path / name, "DISTILLER.TYPE", name)
            student, teacher = networks()
            before = student.fc.weight.detach().clone()
            distiller = distiller_dict[name](student, teacher, cfg)
            trainer_dict[trainer]("run", distiller, loader(), loader(), cfg).train()
            assert not torch.equal(before, student.fc.weight)
    finally:
        for name in ("MSE", "CROSSBATCH_MSE"):
            dict.pop(distiller_dict, name, None)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_links_and_named_files_exist():
    missing = []
    for page in PAGES:
        text = page.read_text()
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
            place = (page.parent / target).resolve() if target else page
            if "://" in target or MADE in place.parents:
                continue
            if not place.exists() or (anchor and anchor not in anchors(place)):
                missing.append((page.name, target, anchor))
        for target in re.findall(r'\b(?:src|srcset)="([^"]+)"', text):
            missing += [] if (page.parent / target).exists() else [(page.name, target, "")]
        named = re.findall(
            r"(?:tools|configs|tests|benchmarks|docs|examples)/[\w/]+\.(?:py|yaml|md|ipynb)", text
        )
        missing += [(page.name, name, "") for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_page_is_in_the_sites_menu():
    """And every package of the reference exists; what a build finds beside: below."""
    menu = (ROOT / "docs/site/mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = re.findall(r": (\S+)\.md$", menu, re.MULTILINE)
    packages = {name.partition("/")[2] for name in named if name.startswith("reference/")}
    assert len(named) == len(set(named)) and len(packages) > 5
    assert all(importlib.import_module(f"mdistiller.{name}").__doc__ for name in packages)
    roots = {"index", *(page.stem.lower() for page in FROM_ROOT[1:])}
    found = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES[4:]}
    assert {name for name in named if not name.startswith("reference/")} == found | roots


@pytest.mark.slow
def test_the_site_is_built_without_a_network(tmp_path):
    """With mkdocs' strict: a link, an anchor or an object that is missing is an error."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "docs/site/mkdocs.yml")],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    pages = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.html")}
    assert {f"{page.stem}.html" for page in PAGES[4:-1]} <= set(pages) and "index.html" in pages
    # What a page loads lies in the site.
    del pages["404.html"]  # for a server's root
    for name, page in pages.items():
        for tag in re.findall(r"<(?:script|link|img|source)\b[^>]*>", page):
            for target in re.findall(r'\b(?:src|srcset|href)="([^"]+)"', tag):
                assert "://" not in target, (name, target)
                file = (tmp_path / name).parent / target.partition("#")[0].partition("?")[0]
                assert file.exists(), (name, target)
    assert pages["method.html"].count("arithmatex") > 20 and "katex.min.js" in pages["method.html"]
    assert "cross_batch_backward" in pages["reference/weighting.html"]
    words = html.unescape(re.sub("<[^>]+>", "", pages["reference/weighting.html"]))
    assert ":func:" not in words and ":class:" not in words


def test_every_method_has_its_row():
    text = (ROOT / "docs" / "methods.md").read_text()
    plain = [n for n in distiller_dict if not n.startswith("CROSSBATCH_")]
    assert [n for n in plain if f"| `{n}` |" not in text] == []


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mdistiller.__version__
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == mdistiller.__version__


def test_workflows_call_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        for job in jobs:
            rows = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
            for row, step in itertools.product(rows, job["steps"]):
                run = step.get("run", "").replace("${{ matrix.target }}", row.get("target", ""))
                called |= set(re.findall(r"^make ([\w-]+)", run, re.MULTILINE))
    assert {"test", "docs", "test-slow"} <= called <= targets


def test_the_environment_is_told_in_one_paste(capsys):
    report(["env"])
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert told["mdistiller"] == mdistiller.__version__ and told["torch"] == torch.__version__
    assert {"python", "processor", "cores", "CUDA of torch", "SOLVER.DEVICE auto"} <= told.keys()
    (form,) = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("fault.yml")
    assert "tools/report.py env" in form.read_text()


def test_the_drawing_of_a_step_is_what_its_script_draws():
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "step.py"))
    for name, palette in script["PALETTES"].items():
        drawn = (ROOT / "docs" / "figures" / f"step-{name}.svg").read_text(encoding="utf-8")
        assert script["draw"](palette) == drawn
