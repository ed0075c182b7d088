"""The report's files: the page, LaTeX, Markdown, CSV, figures, and plans that are refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdistiller.errors import DataError, MdistillerError
from mdistiller.report import find_root, load_plan, write_report
from mdistiller.report.contents import build
from mdistiller.report.csv_files import cells_csv, runs_csv
from mdistiller.report.document import Document, Table
from mdistiller.report.figures import draw
from mdistiller.report.latex import escape, to_latex
from mdistiller.report.markdown import to_markdown

from .report_runs import column, rows_of, simulate, write_kd, write_plan


@pytest.fixture
def root(tmp_path) -> Path:
    return write_kd(tmp_path / "table1" / "cifar100")


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in turn; collects tables and outside references."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.pictures: list[str] = []
        self.widths: list[set[int]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith("data:image/svg+xml;base64,"):
                self.outside.append(value)
            if name == "src":
                self.pictures.append(value)
        if tag == "table":
            self.widths.append(set())
        if tag == "tr":
            self.cells = 0
        self.cells = getattr(self, "cells", 0) + (tag in ("td", "th"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.widths[-1].add(self.cells)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    root = tmp_path / "table1" / "digits"
    columns = [column(0), {**column(1), "label": "<i>x → y"}]
    plan = write_plan(root, rows_of(["KD", "PKT"]), columns, 2, title="A <b> & c")
    simulate(root, plan, 13)
    page = write_report(load_plan(root)).read_text()
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.outside == []
    assert len(parser.pictures) == 5
    assert all(len(widths) == 1 for widths in parser.widths)
    assert not parser.tags & {"script", "link", "iframe", "b", "i"}
    assert "@import" not in page
    assert "url(" not in page
    names = {p.stem for p in (root / "report").glob("*.png")}
    assert names == {"curves", "differences", "weights", "cosines", "equal_time"}
    assert {p.stem for p in (root / "report").glob("*.svg")} == names


def test_times_are_drawn_of_the_machine_that_has_most_rows(tmp_path):
    root = tmp_path / "table1" / "digits"
    plan = write_plan(root, rows_of(["KD", "PKT"]), [column(1)], 2)
    simulate(root, plan, 3)
    # The first row was trained elsewhere, in more trials than one of the others.
    for trial in (0, 1):
        path = root / f"kd-pair1-t{trial}" / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": "another"}))
    shutil.rmtree(root / "pkt-pair1-t1")
    (figure,) = (d.figure for d in draw(load_plan(root), "last") if d.name == "equal_time")
    lines = figure.axes[0].get_lines()
    assert [x.get_label() for x in lines[:3]] == ["KD + ours", "PKT", "PKT + ours"]
    # And where the fastest baseline that is drawn ended.
    assert lines[3].get_xdata()[0] == max(lines[1].get_xdata())


def test_the_same_runs_give_the_same_bytes_and_are_left_alone(root):
    def contents(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = contents(root)
    first, second = (write_report(load_plan(root), root.parent / n).parent for n in "ab")
    assert contents(first) == contents(second)
    assert contents(root) == before


def check_latex(text: str) -> None:
    assert text.isascii()
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        opened.append(name) if what == "begin" else None
        if what == "end":
            assert opened.pop() == name
    assert opened == []


def test_latex_is_balanced_and_rectangular(root):
    (root / "kd-pair0-t0" / "result.json").write_text("{")
    text = to_latex(build(load_plan(root), "last", []))
    check_latex(text)
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(tables) >= 7
    for table in tables:
        assert all(rule in table for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
        # Cells of several lines are tables themselves.
        plain = re.sub(r"\\begin\{tabular\}\[.*?\\end\{tabular\}", "cell", table)
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", plain)
        rows = re.findall(r"^(.*) \\\\$", plain, re.MULTILINE)
        assert len(rows) >= 2
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


@given(st.text(max_size=30))
def test_any_text_is_safe_in_latex(text):
    done = escape(text)
    check_latex(done)
    commands = re.sub(r"\\(text\w+|symbol|rightarrow|pm|times|alpha|beta|Delta|ldots)", "", done)
    # What is left of the special characters is escaped, or the dollar of our own mathematics.
    assert not re.search(r"(?<!\\)[&%#_]", commands)
    assert len(re.findall(r"(?<!\\)\$", done)) % 2 == 0


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20))
def test_no_text_breaks_a_markdown_table(text):
    table = Table("t", ("a", "b"), ((text, "x"),))
    *_, line = to_markdown(Document("d", (table,))).rstrip("\n").split("\n")
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3


def test_csv_has_every_run_and_every_cell(root):
    shutil.rmtree(root / "kd-pair0-t0")
    plan = load_plan(root)
    runs = list(csv.DictReader(io.StringIO(runs_csv(plan))))
    assert len(runs) == 12
    assert (runs[0]["state"], runs[0]["last_top1"], runs[0]["seed"]) == ("waiting", "", "0")
    assert (runs[1]["last_top1"], runs[1]["best_epoch"], runs[1]["trial"]) == ("71.0", "2", "1")
    cells = list(csv.DictReader(io.StringIO(cells_csv(plan))))
    assert [c["n"] for c in cells] == ["2", "3", "3", "3"]
    assert float(cells[0]["last_minus_paper"]) == pytest.approx(71.5 - 70)
    assert float(cells[1]["best_minus_paper"]) == pytest.approx(72 - 72)
    assert float(cells[2]["last_deviation"]) == pytest.approx(1.1)


@pytest.mark.parametrize("kind", ["sensitivity", "preference"])
def test_other_kinds_have_their_figures(tmp_path, kind):
    if kind == "sensitivity":
        rows = [
            {**rows_of(["KD"])[0], "key": f"x{i}", "label": f"{i / 10}", "x": i / 10}
            for i in (3, 5, 7)
        ]
    else:
        rows = rows_of(["KD"])
    plan = write_plan(tmp_path, rows, [column(0)], 2, kind=kind, printed=False)
    simulate(tmp_path, plan, 3)
    write_report(load_plan(tmp_path))
    names = {p.stem for p in (tmp_path / "report").glob("*.png")}
    expected = {
        "sensitivity": {"sensitivity_relative", "sensitivity_absolute", "curves"},
        "preference": {"preference", "curves", "differences", "weights", "cosines", "equal_time"},
    }
    assert names == expected[kind]


def test_a_plan_without_a_complete_run_is_reported(tmp_path):
    write_plan(tmp_path, rows_of(["KD"]), [column(0)], 2)
    page = write_report(load_plan(tmp_path)).read_text()
    assert "4 runs: 0 done, 0 running, 0 failed, 4 waiting" in page
    assert list((tmp_path / "report").glob("*.png")) == []


@pytest.mark.parametrize(
    ("change_plan", "message"),
    [
        (lambda p: p.pop("rows"), "no entry 'rows'"),
        (lambda p: p.update(kind="x"), "kind 'x' is none of table"),
        (lambda p: p["cells"][0].update(row="x"), "in no row and column"),
        (lambda p: p["cells"].append(p["cells"][0]), "there twice"),
        (lambda p: p["rows"][1].update(baseline="x"), "no row x to compare with"),
        (lambda p: p["rows"].append(p["rows"][0]), "the same key"),
        (lambda p: p["cells"][0].update(runs=None), "not a plan"),
        (lambda p: p["cells"][0].update(printed="?"), "not a plan"),
        (lambda p: p.update(rows=3), "not a plan"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(root, change_plan, message):
    raw = json.loads((root / "plan.json").read_text())
    change_plan(raw)
    (root / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message):
        load_plan(root)


def test_the_table_is_found_by_name_or_folder(root):
    prefix = root.parents[1]
    assert find_root("table1", prefix) == root
    assert find_root("table1", prefix, "cifar100") == root
    assert find_root(str(root)) == root
    with pytest.raises(DataError, match="tables there: table1"):
        find_root("table9", prefix)
    with pytest.raises(DataError, match="no table1 on digits .* --dataset cifar100"):
        find_root("table1", prefix, "digits")
    shutil.copytree(root, root.with_name("digits"))
    with pytest.raises(DataError, match=r"--dataset cifar100 \| digits"):
        find_root("table1", prefix)
    with pytest.raises(DataError, match="no plan.json"):
        find_root(str(prefix))


def test_a_folder_that_cannot_be_written_is_one_line(root):
    (root / "file").write_text("")
    with pytest.raises(MdistillerError, match=r"cannot write into .* give another --out"):
        write_report(load_plan(root), root / "file")


def test_writing_again_replaces_the_files(root):
    first = write_report(load_plan(root)).read_text()
    shutil.rmtree(root / "kd-pair0-t0")
    assert write_report(load_plan(root)).read_text() != first
