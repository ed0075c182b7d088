"""The report on synthetic result folders: what counts, what it says, and its files."""

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
from mdistiller.experiments.report import find_root, load_plan, write_report
from mdistiller.experiments.report.comparison import (
    accuracy_within,
    at_equal_epochs,
    at_equal_time,
    compare_rows,
    costs,
)
from mdistiller.experiments.report.contents import build
from mdistiller.experiments.report.csv_files import cells_csv, runs_csv
from mdistiller.experiments.report.document import Document, Table
from mdistiller.experiments.report.facts import facts
from mdistiller.experiments.report.latex import escape, to_latex
from mdistiller.experiments.report.markdown import to_markdown
from mdistiller.experiments.report.tables import accuracy_table, state_table

from .report_runs import column, rows_of, simulate, write_plan, write_run

NAMES = ("kd", "kd_crossbatch")


@pytest.fixture
def root(tmp_path) -> Path:
    """Two pairs, KD and its twin, three trials; all complete, last epochs known.

    KD ends at 70 + trial, its twin 0.1, 0.2 or 0.3 above; best epochs are 1 above the last.
    """
    folder = tmp_path / "table1" / "cifar100"
    write_plan(folder, rows_of(["KD"]), [column(0), column(1)], 3)
    for place in (0, 1):
        for trial in range(3):
            for gain, name in enumerate(NAMES):
                last = 70 + trial + gain * 0.1 * (trial + 1)
                write_run(
                    folder / f"{name}-pair{place}-t{trial}",
                    [50.0, last + 1, last],
                    seed=100 * place + trial,
                    seconds=2.0 if gain else 1.0,
                )
    return folder


def rendered(plan, rule="last") -> str:
    return to_markdown(build(plan, rule, []))


def test_cells_hold_mean_deviation_and_n_by_both_rules(root):
    plan = load_plan(root)
    last, best = (accuracy_table(plan, rule) for rule in ("last", "best"))
    assert "last epoch" in last.caption
    assert "best epoch, chosen on the test images" in best.caption
    assert last.rows[0][:4] == ("KD", "measured", "71.00 ± 1.00 (3)", "71.00 ± 1.00 (3)")
    assert best.rows[0][2] == "72.00 ± 1.00 (3)"
    assert last.rows[3][2] == "71.20 ± 1.10 (3)"


def test_printed_numbers_have_cells_of_their_own(root):
    table = accuracy_table(load_plan(root), "last")
    assert [row[1] for row in table.rows] == ["measured", "paper", "difference"] * 2
    # Pairs are printed as 70 and 72 (tests/report_runs.py): 71 is measured.
    assert table.rows[1][2:] == ("70.00", "72.00", "71.00")
    assert table.rows[2][2:] == ("+1.00", "−1.00", "0.00")
    for kind, *cells in (row[1:] for row in table.rows):
        assert all(("±" in cell) == (kind == "measured") for cell in cells[:-1])


def test_printed_numbers_are_left_out_on_another_data_set(root):
    raw = json.loads((root / "plan.json").read_text())
    (root / "plan.json").write_text(json.dumps({**raw, "dataset": "fashion_mnist"}))
    plan = load_plan(root)
    table = accuracy_table(plan, "last")
    assert [row[0] for row in table.rows] == ["KD", "KD + ours"]
    assert "CIFAR-100, another task than fashion_mnist" in " ".join(facts(plan))
    (line, *_) = csv.DictReader(io.StringIO(cells_csv(plan)))
    assert (line["paper"], line["paper_dataset"]) == ("70.0", "cifar100")
    assert line["last_minus_paper"] == ""


def test_the_selected_rule_comes_first(root):
    plan = load_plan(root)
    for rule in ("last", "best"):
        text = rendered(plan, rule)
        assert (text.index("### Last epoch") < text.index("### Best epoch")) == (rule == "last")


def test_differences_are_paired_by_trial(root):
    (comparison,) = compare_rows(load_plan(root), at_equal_epochs("last"))
    assert comparison.baseline.key == "kd"
    # Gains of 0.1, 0.2, 0.3 in both pairs: mean 0.2, deviation 0.1, variance of the mean over
    # two pairs 0.01 / 6, 4 degrees of freedom; t(0.975; 4) = 2.7764.
    assert comparison.pooled.mean == pytest.approx(0.2)
    assert comparison.pooled.df == pytest.approx(4)
    assert comparison.pooled.high - 0.2 == pytest.approx(2.776445 * (0.01 / 6) ** 0.5, rel=1e-5)
    assert comparison.intervals["pair0"].high - 0.2 == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert (comparison.improved, comparison.signs.better) == (2, 6)
    assert comparison.signs.p == pytest.approx(2 / 64)


def test_unequal_seeds_are_no_pair(root):
    raw = json.loads((root / "plan.json").read_text())
    raw["cells"][2]["runs"][0]["seed"] = 999
    (root / "plan.json").write_text(json.dumps(raw))
    path = root / "kd_crossbatch-pair0-t0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 999}))
    (comparison,) = compare_rows(load_plan(root), at_equal_epochs("last"))
    assert [len(d) for d in comparison.differences.values()] == [2, 3]


def test_missing_cells_are_blank_and_one_trial_has_no_deviation(root):
    for trial in range(3):
        shutil.rmtree(root / f"kd-pair0-t{trial}")
    for trial in (0, 1):
        shutil.rmtree(root / f"kd-pair1-t{trial}")
    plan = load_plan(root)
    table = accuracy_table(plan, "last")
    assert table.rows[0] == ("KD", "measured", "", "72.00 ± – (1)", "")
    assert table.rows[2][2:] == ("", "0.00", "")
    (comparison,) = compare_rows(plan, at_equal_epochs("last"))
    assert list(comparison.differences) == ["pair1"]
    text = rendered(plan)
    assert "| +0.30 | – | – | – | 1 of 1 | 1 / 0 / 0 | 1.000 |" in text
    assert state_table(plan).rows[-1] == ("all", "7", "0", "0", "5", "0")
    write_report(plan)


BREAKAGES = {
    "damaged JSON": lambda f: (f / "result.json").write_text("{"),
    "not a JSON object": lambda f: (f / "result.json").write_text("[]"),
    "line 3: damaged JSON": lambda f: cut(f / "metrics.jsonl", -20),
    "has 1 epochs, result.json says 3": lambda f: keep(f / "metrics.jsonl", 1),
    "metrics.jsonl is missing": lambda f: (f / "metrics.jsonl").unlink(),
    "a value is NaN": lambda f: change(f / "result.json", last_top1=float("nan")),
    "last_top1 is missing": lambda f: change(f / "result.json", last_top1=None),
    "best_top1 is '70'": lambda f: change(f / "result.json", best_top1="70"),
    "accuracies disagree": lambda f: change(f / "result.json", last_top1=12.0),
    "is of seed 7, the plan says 0": lambda f: change(f / "result.json", seed=7),
    "cannot be read": lambda f: (f / "result.json").write_bytes(b"\xff\xfe"),
}


def cut(path: Path, end: int) -> None:
    path.write_text(path.read_text()[:end])


def keep(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("reason", BREAKAGES)
def test_broken_runs_are_listed_with_the_reason_and_never_counted(root, reason):
    BREAKAGES[reason](root / "kd-pair0-t0")
    plan = load_plan(root)
    assert plan.states["broken"] == 1
    (run,) = (run for run in plan.runs if run.state == "broken")
    assert reason in run.reason
    assert accuracy_table(plan, "last").rows[0][2] == "71.50 ± 0.71 (2)"
    text = build(plan, "last", [])
    assert any(f"kd-pair0-t0: {run.reason}" in str(block) for block in text.blocks)
    line = next(csv.DictReader(io.StringIO(runs_csv(plan))))
    assert (line["state"], line["reason"], line["last_top1"]) == ("broken", run.reason, "")


def test_waiting_failed_and_running_runs_are_told_apart(root):
    fcntl = pytest.importorskip("fcntl")
    for trial in range(3):
        (root / f"kd-pair0-t{trial}" / "result.json").unlink()
    failure = {"exit_code": 3, "tail": ["step 1", "error: a | b_c & <d>"], "finished": "now"}
    (root / "kd-pair0-t1.failed.json").write_text(json.dumps(failure))
    # A run under way may have written half a line.
    cut(root / "kd-pair0-t2" / "metrics.jsonl", -20)
    with (root / "kd-pair0-t2" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = load_plan(root)
    assert [run.state for run in plan.cells[0].runs] == ["waiting", "failed", "running"]
    assert len(plan.cells[0].runs[2].history) == 2
    text = rendered(plan)
    assert "12 runs: 9 done, 1 running, 1 failed, 1 waiting, 0 broken" in text
    assert "exit status 3" in text
    assert "\nerror: a | b_c & <d>\n" in text
    # The report itself leaves no lock behind.
    assert load_plan(root).cells[0].runs[2].state == "waiting"


def test_equal_time_takes_the_last_epoch_that_was_complete(root):
    plan = load_plan(root)
    run = plan.cells[2].done[0]  # 2 s an epoch: 50, 71.1, 70.1
    assert accuracy_within(run, 1.9, "last")[1] == 0
    assert accuracy_within(run, 3.9, "last") == (50.0, 1)
    assert accuracy_within(run, 6.0, "last") == (70.1, 3)
    assert accuracy_within(run, 6.0, "best") == (71.1, 3)
    # The baseline's three epochs of 1 s: the twin has completed one.
    (comparison,) = compare_rows(plan, at_equal_time("last"))
    assert comparison.intervals["pair0"].mean == pytest.approx(50 - 71)
    (first, _) = costs(plan)
    assert (first.factor, first.seconds, first.n) == (2.0, (2.0, 1.0), 3)
    assert first.reached == pytest.approx(1 / 3)
    assert "2.00 (3) 2 s : 1 s, 33 %" in rendered(plan)


def test_the_cost_is_told_also_where_nothing_can_be_compared_at_equal_time(root):
    for place in (0, 1):
        for trial in range(3):
            name, seed = f"kd_crossbatch-pair{place}-t{trial}", 100 * place + trial
            write_run(root / name, [50.0, 71.0, 70.0], seed=seed, seconds=3.5)
    plan = load_plan(root)
    assert compare_rows(plan, at_equal_time("last")) == []
    text = rendered(plan)
    assert "3.50 (3) 3.5 s : 1 s, 0 %" in text
    assert "No slower run had completed an epoch" in text


def test_times_of_unlike_machines_are_not_compared(root):
    for trial in range(3):
        change(root / f"kd-pair0-t{trial}" / "result.json", device="cuda: H100")
    plan = load_plan(root)
    (comparison,) = compare_rows(plan, at_equal_time("last"))
    assert list(comparison.differences) == ["pair1"]
    assert [cost.column.key for cost in costs(plan)] == ["pair1"]
    assert any("cuda: H100 (3 runs)" in fact for fact in facts(plan))


def test_facts_name_what_one_needs_to_repeat_it(root):
    text = " ".join(facts(load_plan(root)))
    for word in ("cpu: x86_64", "threads a run: 1", "torch 2.14.1", "0123456789ab-dirty"):
        assert word in text
    assert "epochs: 3" in text
    assert "resnet101 75.61" in text
    assert "best epoch is chosen on the test images" in text


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
