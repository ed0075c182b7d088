"""The report on synthetic result folders: what counts, and what it says."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from mdistiller.report import load_plan, write_report
from mdistiller.report.comparison import (
    accuracy_within,
    at_equal_epochs,
    at_equal_time,
    compare_rows,
    costs,
)
from mdistiller.report.contents import build
from mdistiller.report.csv_files import cells_csv, runs_csv
from mdistiller.report.facts import facts
from mdistiller.report.markdown import to_markdown
from mdistiller.report.tables import accuracy_table, state_table

from .report_runs import NAMES, write_kd, write_run


@pytest.fixture
def root(tmp_path) -> Path:
    return write_kd(tmp_path / "table1" / "cifar100")


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


def test_times_of_fleets_are_marked_and_compared_with_their_like_only(root):
    def share(names, trials, fleet):
        for name in names:
            for trial in trials:
                file = root / f"{name}-pair0-t{trial}" / "metrics.jsonl"
                entries = [json.loads(line) for line in file.read_text().splitlines()]
                lines = [json.dumps({**entry, "fleet": fleet}) + "\n" for entry in entries]
                file.write_text("".join(lines))

    assert "in one process" not in " ".join(facts(load_plan(root)))
    share(NAMES, (0, 1), 10)
    share(NAMES[:1], (2,), 10)  # its twin was trained alone
    plan = load_plan(root)
    (comparison,) = compare_rows(plan, at_equal_time("last"))
    found = {key: interval.n for key, interval in comparison.intervals.items()}
    assert found == {"pair0": 2, "pair1": 3}
    (fact,) = [fact for fact in facts(plan) if "in one process" in fact]
    assert fact.startswith("runs in one process: 1 (7 runs); 10 (5 runs); the time of such a run")


def test_facts_name_what_one_needs_to_repeat_it(root):
    text = " ".join(facts(load_plan(root)))
    for word in ("cpu: x86_64", "threads a run: 1", "torch 2.14.1", "0123456789ab-dirty"):
        assert word in text
    assert "epochs: 3" in text
    assert "resnet101 75.61" in text
    assert "best epoch is chosen on the test images" in text
    # Runs of another machine, where the same settings gave another teacher.
    for name in NAMES:
        change(root / f"{name}-pair0-t2" / "result.json", teacher_top1=74.02)
    assert "resnet101 74.02 and 75.61" in " ".join(facts(load_plan(root)))
