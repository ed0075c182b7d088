"""What counts in a report and what it says, on synthetic result folders."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdistiller.experiments.tables.published import Number
from mdistiller.report import write_report
from mdistiller.report.comparison import compare, costs
from mdistiller.report.contents import build
from mdistiller.report.csv_files import cells_csv, runs_csv
from mdistiller.report.document import render
from mdistiller.report.facts import facts
from mdistiller.report.frame import folder_run
from mdistiller.report.tables import accuracy_table, cost_table, protocol_table, state_table

from .report_runs import NAMES, kd, write_kd


@pytest.fixture
def root(tmp_path) -> Path:
    return write_kd(tmp_path / "table1" / "cifar100")


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def lines(table) -> list[tuple[str, ...]]:
    """The rows of a report's table, words first."""
    frame = table.frame.reset_index(allow_duplicates=True)
    return list(frame.itertuples(index=False, name=None))


def rendered(results, rule="last") -> str:
    return render(build(results, rule, {}), "md")


def of_baseline(results, rule="last"):
    (comparison,) = compare(results, results.compared, rule)
    return comparison


# ---- accuracies ------------------------------------------------------------------------------


def test_cells_hold_mean_deviation_and_n_by_both_rules(root):
    last, best = (accuracy_table(kd(root), rule) for rule in ("last", "best"))
    assert "last epoch" in last.caption
    assert "best epoch, chosen on the test images" in best.caption
    assert lines(last)[0] == ("KD", "measured", *["71.00 ± 1.00 (3)"] * 2, "71.00")
    assert lines(best)[0][2] == "72.00 ± 1.00 (3)"
    assert lines(last)[3][2] == "71.20 ± 1.10 (3)"


def test_printed_numbers_have_rows_of_their_own_and_only_on_their_data_set(root):
    found = lines(accuracy_table(kd(root), "last"))
    assert [row[1] for row in found] == ["measured", "paper", "difference"] * 2
    # Pairs are printed as 70 and 72 (tests/report_runs.py): 71 is measured.
    assert found[1][2:] == ("70.00", "72.00", "71.00")
    assert found[2][2:] == ("+1.00", "−1.00", "0.00")
    other = kd(root, dataset="fashion_mnist")
    assert [row[0] for row in lines(accuracy_table(other, "last"))] == ["KD", "KD + ours"]
    assert "CIFAR-100, another task than fashion_mnist" in " ".join(facts(other))
    (line, *_) = csv.DictReader(io.StringIO(cells_csv(other)))
    assert (line["paper"], line["paper_dataset"]) == ("70.0", "cifar100")
    assert line["last_minus_paper"] == ""


def test_published_numbers_stand_beside_with_the_protocol_of_each(root):
    usual = Number(70.5, "their README")
    long = Number(
        72.25, "a table", "another paper", epochs=480, views=2, log=(72.3, None), reread=False
    )
    known = {"kd": {"pair0": usual, "pair1": long}, "ctkd_ls": {"pair0": usual}}
    results = kd(root, printed={}, published=known)
    found = lines(accuracy_table(results, "last"))
    assert [row[1] for row in found] == ["measured", "published", "measured"]
    assert found[1][2:] == ("70.50", "72.25\n480 epochs, 2 views", "")
    first, second, third = lines(protocol_table(results))
    assert first[2:] == ("70.50", "240", "1", "best", "their README", "its authors", "")
    assert second[3:7] == ("480", "2", "best", "a table (from notes on it)")
    assert second[-1] == "public log: best 72.30, last not given"
    assert third[0] == "CTKD + LS (not trained here)"
    assert "each with its protocol" in rendered(results)
    (line, *_) = csv.DictReader(io.StringIO(cells_csv(results)))
    assert (line["published"], line["protocol"][:10]) == ("70.5", "240; 1; be")
    other = kd(root, printed={}, published=known, dataset="digits")
    assert protocol_table(other) is None
    assert "70.50" not in rendered(other) and "another task than digits" in rendered(other)


def test_the_selected_rule_comes_first_and_equal_numbers_are_said_once(root):
    for rule in ("last", "best"):
        text = rendered(kd(root), rule)
        places = [text.index(f"Test top-1 in %, {word} epoch") for word in ("last", "best")]
        assert (places == sorted(places)) == (rule == "last")
    results = kd(root)
    alike = replace(results, runs=results.runs.assign(best_top1=results.runs["last_top1"]))
    text = rendered(alike)
    assert "both selection rules give these numbers" in text
    assert "best epoch, chosen" not in text
    # Every fact once, under no table.
    assert text.count("commit: 0123456789ab-dirty") == text.count("## How these numbers") == 1


def test_missing_cells_are_blank_and_one_trial_has_no_deviation(root):
    for name in ("kd-pair0-t0", "kd-pair0-t1", "kd-pair0-t2", "kd-pair1-t0", "kd-pair1-t1"):
        shutil.rmtree(root / name)
    results = kd(root)
    found = lines(accuracy_table(results, "last"))
    assert found[0] == ("KD", "measured", "", "72.00 ± – (1)", "")
    assert found[2][2:] == ("", "0.00", "")
    assert list(of_baseline(results).differences) == ["pair1"]
    text = rendered(results)
    assert "| one trial | +0.30 | – | 1 |" in text
    assert "| – | – | 1 of 1 | 1 / 0 / 0 | 1.000 |" in text
    assert lines(state_table(results))[-1] == ("all", "7", "0", "0", "5", "0")
    write_report(results)


# ---- differences and times -------------------------------------------------------------------


def test_differences_are_paired_by_trial(root):
    comparison = of_baseline(kd(root))
    assert comparison.other.key == "kd"
    # Gains of 0.1, 0.2, 0.3 in both pairs: mean 0.2, deviation 0.1, variance of the mean over
    # two pairs 0.01 / 6, 4 degrees of freedom; t(0.975; 4) = 2.7764.
    assert comparison.pooled.mean == pytest.approx(0.2)
    assert comparison.pooled.df == pytest.approx(4)
    assert comparison.pooled.high - 0.2 == pytest.approx(2.776445 * (0.01 / 6) ** 0.5, rel=1e-5)
    assert comparison.intervals["pair0"].high - 0.2 == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert (comparison.improved, comparison.signs.better) == (2, 6)
    assert comparison.signs.p == pytest.approx(2 / 64)


def test_unequal_seeds_are_no_pair(root):
    folder = root / "kd_crossbatch-pair0-t0"
    change(folder / "result.json", seed=999)
    (folder / "config.yaml").write_text("EXPERIMENT: {SEED: 999}\n")
    assert [len(d) for d in of_baseline(kd(root)).differences.values()] == [2, 3]


def test_costs_are_of_like_machines_and_processes_only(root):
    first, second = costs(kd(root))
    assert (first.factor, first.seconds, first.n) == (2.0, (2.0, 1.0), 3)
    assert lines(cost_table(kd(root))) == [("KD + ours", *["2.00 (3)\n2 s : 1 s"] * 2)]
    for trial in range(3):
        change(root / f"kd-pair0-t{trial}" / "result.json", device="cuda: H100")
    results = kd(root)
    assert [cost.column.key for cost in costs(results)] == ["pair1"]
    assert any("cuda: H100 (3 runs)" in fact for fact in facts(results))
    assert "in one process" not in " ".join(facts(results))
    # Two trials of both rows in fleets of ten; a third one's twin was trained alone.
    shared = [f"{name}-pair1-t{trial}" for name in NAMES for trial in (0, 1)] + ["kd-pair1-t2"]
    for name in shared:
        file = root / name / "metrics.jsonl"
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**e, "fleet": 10}) + "\n" for e in entries))
    results = kd(root)
    assert [(cost.column.key, cost.n) for cost in costs(results)] == [("pair1", 2)]
    (fact,) = [fact for fact in facts(results) if "in one process" in fact]
    assert fact.startswith("runs in one process: 1 (7 runs); 10 (5 runs); the time of such a run")


def test_facts_name_what_one_needs_to_repeat_it(root):
    text = " ".join(facts(kd(root)))
    for words in ("cpu: x86_64", "threads a run: 1", "torch 2.14.1", "0123456789ab-dirty"):
        assert words in text
    assert "epochs: 3" in text and "resnet101 75.61" in text
    assert "best epoch is chosen on the test images" in text
    # Runs of another machine, where the same settings gave another teacher.
    for name in NAMES:
        change(root / f"{name}-pair0-t2" / "result.json", teacher_top1=74.02)
    assert "resnet101 74.02 and 75.61" in " ".join(facts(kd(root)))


# ---- states ----------------------------------------------------------------------------------


def cut(path: Path, end: int) -> None:
    path.write_text(path.read_text()[:end])


def keep(path: Path, which: slice) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[which]))


BREAKAGES = {
    "damaged JSON": lambda f: (f / "result.json").write_text("{"),
    "not a JSON object": lambda f: (f / "result.json").write_text("[]"),
    "line 3: damaged JSON": lambda f: cut(f / "metrics.jsonl", -20),
    "has 1 epochs, result.json says 3": lambda f: keep(f / "metrics.jsonl", slice(1)),
    "has 0 epochs": lambda f: (f / "metrics.jsonl").write_text(""),
    "metrics.jsonl is missing": lambda f: (f / "metrics.jsonl").unlink(),
    "a value is NaN": lambda f: change(f / "result.json", last_top1=float("nan")),
    "last_top1 is missing": lambda f: change(f / "result.json", last_top1=None),
    "best_top1 is '70'": lambda f: change(f / "result.json", best_top1="70"),
    "accuracies disagree": lambda f: change(f / "result.json", last_top1=12.0),
    "of seed 7, its configuration of 0": lambda f: change(f / "result.json", seed=7),
    "cannot be read": lambda f: (f / "result.json").write_bytes(b"\xff\xfe"),
    "config.yaml: damaged": lambda f: (f / "config.yaml").write_text("a: ["),
}


def test_broken_runs_are_listed_with_the_reason_and_never_counted(root):
    for reason, damage in BREAKAGES.items():
        shutil.rmtree(root)
        write_kd(root)
        damage(root / "kd-pair0-t0")
        results = kd(root)
        (run,) = results.runs[results.runs["state"] == "broken"].itertuples()
        assert reason in run.reason
        assert lines(accuracy_table(results, "last"))[0][2] == "71.50 ± 0.71 (2)"
        assert f"kd-pair0-t0: broken, {run.reason}" in render(build(results, "last", {}), "txt")
        line = next(csv.DictReader(io.StringIO(runs_csv(results))))
        assert (line["state"], line["reason"], line["last_top1"]) == ("broken", run.reason, "")


def test_a_run_that_was_resumed_from_its_checkpoint_alone_counts(root):
    keep(root / "kd-pair0-t0" / "metrics.jsonl", slice(1, None))
    results = kd(root)
    assert results.states["done"] == 12
    assert np.isnan(results.curves("kd", "pair0", "test_acc")[0, 0])
    assert "metrics.jsonl lacks epochs 1 to 1" in render(build(results, "last", {}), "txt")
    write_report(results)


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
        results = kd(root)
    assert list(results.runs["state"][:3]) == ["waiting", "failed", "running"]
    assert len(results.runs["history"][2]) == 2
    text = rendered(results)
    assert "12 runs: 9 done, 1 running, 1 failed, 1 waiting, 0 broken" in text
    assert "exit status 3" in text
    assert "\nerror: a | b_c & <d>\n" in text
    # The report itself leaves no lock behind.
    assert folder_run(root / "kd-pair0-t2")["state"] == "waiting"
