"""The report's files: the page, LaTeX, Markdown, CSV, and what the figures show."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mdistiller.errors import MdistillerError
from mdistiller.experiments.tables.layouts import Row
from mdistiller.report import write_report
from mdistiller.report.contents import build
from mdistiller.report.csv_files import cells_csv, runs_csv
from mdistiller.report.document import Document, Heading, Listing, Text, as_latex, render, table
from mdistiller.report.figures import draw, save
from mdistiller.report.figures.sensitivity import sensitivity_absolute, sensitivity_relative
from mdistiller.report.figures.style import line_style

from . import report_runs
from .report_runs import COLUMNS, kd, rows_of, simulate, write_kd, write_run


@pytest.fixture
def root(tmp_path) -> Path:
    return write_kd(tmp_path / "table1" / "cifar100")


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in turn; collects tables, links and pictures."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.links, self.pictures, self.anchors = [], [], [], []
        self.widths: list[set[int]] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [known["href"]] if "href" in known else []
        self.pictures += [known["src"]] if "src" in known else []
        self.anchors += [known["id"]] if "id" in known else []
        if tag == "table":
            self.widths.append(set())
        if tag == "tr":
            self.cells = 0
        self.cells = getattr(self, "cells", 0) + (tag in ("td", "th"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.widths[-1].add(self.cells)


def two_methods(folder, epochs=13, trials=2, columns=COLUMNS[:2], **changed):
    rows = rows_of("KD", "PKT")
    simulate(folder, rows, columns, trials, epochs)
    return report_runs.table(folder, rows, columns, trials, **changed)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    known = {"title": "A <b> & c", "dataset": "digits"}
    results = two_methods(tmp_path / "table1", epochs=4, columns=COLUMNS[:1], **known)
    text = write_report(results).read_text(encoding="utf-8")
    page = Balanced(text)
    assert "A &lt;b&gt; &amp; c" in text and "\\n" not in text
    # Contents at the top, and nothing from outside; figures refer to parts of their own.
    assert page.links and set(page.links) <= {f"#{anchor}" for anchor in page.anchors}
    assert text.count("<svg ") == 5 and page.pictures == []
    assert len(page.anchors) == len(set(page.anchors))
    assert all(len(widths) == 1 for widths in page.widths)
    assert not page.tags & {"link", "iframe", "b", "i"}
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) == {"#"}
    assert re.findall(r"<script[^>]*>", text) == ["<script>"] and "fetch" not in text
    # The answer first.
    assert text.index(">Verdict</h2>") < text.index(">Accuracy</h2>")
    for kind in ("png", "svg"):
        names = {p.stem for p in (tmp_path / "table1" / "report").glob(f"*.{kind}")}
        assert names == {"curves", "differences", "weights", "cosines", "equal_time"}


def test_the_same_runs_give_the_same_bytes_and_are_left_alone(root):
    def contents(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def one_pair():
        return report_runs.table(root, rows_of("KD"), COLUMNS[:1], 3)

    before = contents(root)
    first, second = (write_report(one_pair(), root.parent / n).parent for n in "ab")
    assert contents(first) == contents(second)
    assert contents(root) == before
    shutil.rmtree(root / "kd-pair0-t0")
    write_report(one_pair(), first)
    assert contents(first) != contents(second)


def test_a_folder_that_cannot_be_written_is_one_line(root):
    (root / "file").write_text("")
    with pytest.raises(MdistillerError, match=r"cannot write into .* give another --out"):
        write_report(kd(root), root / "file")


def test_a_table_without_a_complete_run_is_reported(tmp_path):
    page = write_report(kd(tmp_path)).read_text(encoding="utf-8")
    assert "12 runs: 0 done, 0 running, 0 failed, 12 waiting" in page
    assert list((tmp_path / "report").glob("*.png")) == []


# ---- texts -----------------------------------------------------------------------------------


def check_latex(text: str) -> None:
    assert text.isascii()
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []


def test_latex_is_balanced_and_rectangular(root):
    (root / "kd-pair0-t0" / "result.json").write_text("{")
    text = render(build(kd(root), "last", {}), "tex")
    check_latex(text)
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL)
    assert len(tables) >= 7
    for found in tables:
        assert all(rule in found for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
        # Cells of several lines are tables themselves.
        plain = re.sub(r"\\begin\{tabular\}\[.*?\\end\{tabular\}", "cell", found)
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", plain)
        rows = re.findall(r"^(.*) \\\\$", plain, re.MULTILINE)
        assert len(rows) >= 2
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


@given(st.text(max_size=30).filter(lambda text: "\n" not in text))
def test_any_text_is_safe_in_latex(text):
    done = as_latex(text)
    check_latex(done)
    commands = re.sub(r"\\(text\w+|rightarrow|pm|times|alpha|beta|Delta|ldots)", "", done)
    # What is left of the special characters is escaped, or the dollar of our own mathematics.
    assert not re.search(r"(?<!\\)[&%#_]", commands)
    assert len(re.findall(r"(?<!\\)\$", done)) % 2 == 0


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20))
def test_no_text_breaks_a_table(text):
    document = Document(text, (table(text, ("a", text), [(text, "x")]),))
    *_, line = render(document, "md").rstrip("\n").split("\n")
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    page = Balanced(render(document, "html"))
    assert page.widths == [{2}]


def test_every_block_is_in_every_rendering():
    log = Listing(("```", "a_b"), verbatim=True)
    blocks = Heading("One & two"), Text("three_four"), Listing(("5 < 6",)), log
    pages = {kind: render(Document("T", blocks), kind) for kind in ("html", "md", "tex", "txt")}
    assert "````\n```\na_b\n````" in pages["md"] and "## One & two" in pages["md"]
    assert r"three\_four" in pages["tex"] and r"\item 5 \textless{} 6" in pages["tex"]
    assert '<h2 id="one-two">One &amp; two</h2>' in pages["html"]
    assert "One & two\n---------\n" in pages["txt"] and "\n  5 < 6\n" in pages["txt"]


def test_csv_has_every_run_and_every_cell(root):
    shutil.rmtree(root / "kd-pair0-t0")
    results = kd(root)
    runs = list(csv.DictReader(io.StringIO(runs_csv(results))))
    assert len(runs) == 12
    assert (runs[0]["state"], runs[0]["last_top1"], runs[0]["seed"]) == ("waiting", "", "")
    assert (runs[1]["last_top1"], runs[1]["best_epoch"], runs[1]["trial"]) == ("71.0", "2", "1")
    assert (runs[1]["method"], runs[1]["teacher"], runs[1]["seed"]) == ("KD", "resnet101", "1")
    cells = list(csv.DictReader(io.StringIO(cells_csv(results))))
    assert [c["n"] for c in cells] == ["2", "3", "3", "3"]
    assert float(cells[0]["last_minus_paper"]) == pytest.approx(71.5 - 70)
    assert float(cells[1]["best_minus_paper"]) == pytest.approx(72 - 72)
    assert float(cells[2]["last_deviation"]) == pytest.approx(1.1)


# ---- figures ---------------------------------------------------------------------------------


def test_figures_are_labelled_and_lines_told_apart_without_colour(tmp_path):
    results = two_methods(tmp_path, epochs=16, columns=COLUMNS)
    drawn = {d.name: d.figure for d in draw(results, "last")}
    axes = drawn["curves"].axes
    assert sum(one.get_title() != "" for one in axes) == 5
    lines = axes[0].get_lines()
    looks = {(x.get_marker(), x.get_linestyle(), x.get_markerfacecolor()) for x in lines}
    assert len(looks) == len(lines) == 4
    for name, figure in drawn.items():
        used = [one for one in figure.axes if one.axison]
        assert any(one.get_xlabel() for one in used), name
        if name != "differences":
            assert any(one.get_ylabel() for one in used), name
    # Mean over the two trials, in the last epoch.
    assert lines[0].get_ydata()[-1] == pytest.approx(results.top1("kd", "pair0", "last").mean())
    png, svg = save(drawn["weights"])
    assert np.asarray(Image.open(io.BytesIO(png)).convert("L")).std() > 5
    assert svg.rstrip().endswith(b"</svg>")


def test_no_two_of_many_lines_look_alike():
    styles = [line_style(i, dashed) for i in range(25) for dashed in (False, i < 10)]
    looks = {(s["marker"], s["linestyle"], s["markerfacecolor"]) for s in styles}
    assert len(looks) == 25 + 10


def test_times_are_drawn_of_the_machine_that_has_most_rows(tmp_path):
    two_methods(tmp_path, epochs=3, columns=COLUMNS[1:2])
    # The first row was trained elsewhere, in more trials than one of the others.
    for trial in (0, 1):
        path = tmp_path / f"kd-pair1-t{trial}" / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "device": "another"}))
    shutil.rmtree(tmp_path / "pkt-pair1-t1")
    results = report_runs.table(tmp_path, rows_of("KD", "PKT"), COLUMNS[1:2], 2)
    (figure,) = (d.figure for d in draw(results, "last") if d.name == "equal_time")
    lines = figure.axes[0].get_lines()
    assert [x.get_label() for x in lines[:3]] == ["KD + ours", "PKT", "PKT + ours"]
    # And where the fastest baseline that is drawn ended.
    assert lines[3].get_xdata()[0] == max(lines[1].get_xdata())


def test_a_preference_has_its_figure(tmp_path):
    rows = rows_of("KD")
    simulate(tmp_path, rows, COLUMNS[:1], 2, 3)
    results = report_runs.table(tmp_path, rows, COLUMNS[:1], 2, kind="preference", printed={})
    names = {d.name for d in draw(results, "last")}
    assert names == {"preference", "curves", "differences", "weights", "cosines", "equal_time"}


def sensitivity(folder: Path, weights=(3, 5, 7), method="RKD"):
    rows = [Row(f"x{i}", f"{i / 10}", method, x=i / 10) for i in weights]
    for i in weights:
        for trial in (0, 1):
            # Trials differ by 5 points, and by 0.2 in what a weight of 0.3 loses.
            accuracy = 70 + 5 * trial - (0.4 + 0.2 * trial) * (i == 3) + 0.1 * (i == 7)
            write_run(folder / f"x{i}-pair0-t{trial}", [accuracy], seed=trial)
    return report_runs.table(folder, rows, COLUMNS[:1], 2, kind="sensitivity", printed={})


def test_sensitivity_is_the_paired_difference_to_equal_weights(tmp_path):
    results = sensitivity(tmp_path)
    names = {d.name for d in draw(results, "last")}
    assert names == {"sensitivity_relative", "sensitivity_absolute", "curves"}
    (axes,) = sensitivity_relative(results, "last").axes
    line, _, (bars,) = axes.containers[0]
    assert np.allclose(line.get_ydata(orig=False), [-0.5, 0, 0.1])
    # Paired: the 5 points between the trials are not in the bars.
    half = [(s[1, 1] - s[0, 1]) / 2 for s in bars.get_segments()]
    assert np.allclose(half, [0.2 / 2**0.5, 0, 0], atol=1e-9)
    absolute = sensitivity_absolute(results, "last").axes[0]
    assert np.allclose(absolute.containers[0][0].get_ydata(orig=False), [72.0, 72.5, 72.6])
    (upper,) = absolute.child_axes
    names = [tick.get_text() for tick in upper.get_xticklabels()]
    assert names == ["0.6 : 1.4", "1.0 : 1.0", "1.4 : 0.6"]
    # KD's weights are the importances themselves.
    of_kd = sensitivity_absolute(sensitivity(tmp_path / "kd", method="KD"), "last")
    assert of_kd.axes[0].child_axes == []
    # One weight is no sensitivity, and without equal weights there are no differences.
    assert sensitivity_absolute(sensitivity(tmp_path, weights=(3,)), "last") is None
    assert sensitivity_relative(sensitivity(tmp_path, weights=(3, 7)), "last") is None
