"""What README and docs promise: the example runs, the links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mdistiller.distillers import distiller_dict
from mdistiller.engine import trainer_dict

from .toys import config, loader, networks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readmes_own_distiller_trains_both_ways(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in x]
    missing = [x for x in links if not (page.parent / x).exists()]
    named = re.findall(r"(?:tools|configs|tests|benchmarks|docs)/[\w/]+\.(?:py|yaml|md)", text)
    missing += [x for x in named if not (ROOT / x).exists()]
    assert missing == []


def test_every_method_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    plain = [n for n in distiller_dict if not n.startswith("CROSSBATCH_")]
    assert [n for n in plain if f"| `{n}` |" not in text] == []
