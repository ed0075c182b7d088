"""docs/results.md and the pages behind it are what the records say today."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mdistiller.report import evidence, write_evidence
from mdistiller.report.figures import CAPTIONS, Drawn

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs" / "results"


def texts(folder: Path) -> dict[str, str]:
    found = [folder / "results.md", *(folder / "results").glob("*.md")]
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in found}


def as_drawn_before(results, rule, left_out=()) -> Iterator[Drawn]:
    """The figures that docs/results/ has of a table, empty: to draw them takes most of the time."""
    name = f"{results.name}-{results.dataset}"
    if (HERE / f"{name}-{results.settings}.md").exists():
        name = f"{name}-{results.settings}"
    for key, caption in CAPTIONS.items():
        if (HERE / f"{name}-{key}.png").exists():
            yield Drawn(key, caption.format(rule=rule), Figure())


def build(folder: Path, monkeypatch) -> set[str]:
    """Make the pages in ``folder``, compare them with docs/, give the names of the pictures."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evidence, "save_png", lambda figure: b"")
    write_evidence("results", folder)
    made, here = texts(folder), texts(ROOT / "docs")
    here.pop("results/insurance.md")  # another tool's; test_readme.py makes it anew
    assert set(made) == set(here)
    assert [name for name in made if made[name] != here[name]] == []
    return {p.name for p in (folder / "results").glob("*.png")}


def test_the_pages_equal_a_fresh_build(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "draw", as_drawn_before)
    pictures = build(tmp_path, monkeypatch)
    shown = {name for text in texts(tmp_path).values() for name in re.findall(r"[\w-]+\.png", text)}
    assert shown == pictures == {p.name for p in HERE.glob("*.png")} and len(pictures) > 40


@pytest.mark.slow
def test_no_figure_is_missing(tmp_path, monkeypatch):
    assert build(tmp_path, monkeypatch) == {p.name for p in HERE.glob("*.png")}


def test_the_first_page_is_short():
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()) <= 150
