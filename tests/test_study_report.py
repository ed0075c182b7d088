"""Reports of grids, from folders and from records: controls, power, the page of evidence."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mdistiller.commands.reproduce import parse_arguments
from mdistiller.errors import DataError
from mdistiller.experiments import schedule
from mdistiller.experiments.derive import relative_step
from mdistiller.experiments.record import append, read_records, record_file
from mdistiller.experiments.tables import build_table
from mdistiller.experiments.tables.study import CANDIDATES, FIXED, RULES_OUT, STUDY
from mdistiller.report import load_plan, load_recorded, write_evidence, write_report
from mdistiller.report.commands import commands
from mdistiller.report.comparison import at_equal_epochs, at_equal_time, compare_rows, costs
from mdistiller.report.contents import build
from mdistiller.report.dynamics import STEP, dynamics_tables
from mdistiller.report.facts import facts
from mdistiller.report.figures import draw
from mdistiller.report.markdown import to_markdown
from mdistiller.report.numbers import fixed
from mdistiller.report.power import expected_half_width, trials_needed, trials_to_add
from mdistiller.report.statistics import mean_interval
from mdistiller.report.study import choices, controls, longer, readings
from mdistiller.report.study import tested as without_selection
from tools.report import main

from .study_runs import grid, train

TRIALS = 2
ROWS = len(STUDY["grid_b"].rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Grid b whole, recorded, and its folder of records."""
    prefix = tmp_path_factory.mktemp("study")
    poll, schedule._POLL_SECONDS = schedule._POLL_SECONDS, 0.0
    try:
        request = grid(prefix, trials=TRIALS)
        train(request)
        train(grid(prefix, "grid_d", trials=1))
    finally:
        schedule._POLL_SECONDS = poll
    return request


@pytest.fixture
def copy(study, tmp_path) -> Path:
    """Records that a test may change."""
    shutil.copytree(study.record, tmp_path / "results")
    return tmp_path / "results"


def markdown(plan) -> str:
    return to_markdown(build(plan, "last", []))


# ---- power -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", [(5,), (5, 5), (3, 8), (2, 2, 9)])
def test_trials_needed_are_the_smallest_by_scipy(seed, sizes):
    rng = np.random.RandomState(seed)
    groups = [rng.normal(0, 0.05 + 0.4 * rng.rand(), n) for n in sizes]
    needed = trials_needed(groups)
    variances = [np.var(g, ddof=1) for g in groups]

    def width(n):
        """Of n trials with exactly these deviations, by scipy's own interval."""
        df = sum(variances) ** 2 / sum(v**2 / (n - 1) for v in variances)
        error = np.sqrt(sum(v / n for v in variances)) / len(groups)
        low, high = stats.t.interval(0.95, df, loc=0, scale=error)
        return (high - low) / 2

    assert width(needed) <= 0.15 + 1e-12
    assert needed == 2 or width(needed - 1) > 0.15
    assert expected_half_width(groups, needed) == pytest.approx(width(needed))


@pytest.mark.parametrize("sizes", [(4, 4), (3, 9), (2, 5, 3), (6,)])
def test_the_expected_width_is_that_of_the_interval_at_hand(sizes):
    rng = np.random.RandomState(len(sizes))
    groups = [rng.normal(0, 0.3, n) for n in sizes]
    interval = mean_interval(groups)
    assert expected_half_width(groups, sizes) == pytest.approx((interval.high - interval.low) / 2)


def test_trials_are_added_where_the_differences_scatter():
    noisy, quiet = np.array([0.9, -0.9, 0.6, -0.6, 0.1]), np.array([0.1, 0.0, 0.05, 0.02, 0.03])
    everywhere = trials_needed([noisy, quiet])
    more, same = trials_to_add([noisy, quiet])
    assert same == 5 < more
    assert more + same < 2 * everywhere
    assert expected_half_width([noisy, quiet], (more, same)) <= 0.15
    assert expected_half_width([noisy, quiet], (more - 1, same)) > 0.15
    assert trials_to_add([quiet, noisy]) == (same, more)
    assert trials_to_add([quiet, quiet]) == (5, 5)
    assert trials_to_add([noisy]) == (trials_needed([noisy]),)


def test_no_deviation_no_power():
    assert trials_needed([np.array([0.3])]) is None
    assert trials_needed([]) is None
    assert trials_needed([np.array([0.3, 0.3])]) == 2
    assert trials_needed([np.array([0.0, 1e6])]) is None
    assert trials_to_add([np.array([0.3])]) is None
    assert trials_to_add([np.array([0.0, 1e6])]) is None
    assert trials_to_add([np.array([0.0, 20.0])]) is None


# ---- controls --------------------------------------------------------------------------------


def test_weights_are_chosen_by_held_out_accuracy_alone(study):
    plan = load_plan(study.root)
    (choice,) = choices(plan)
    rows = {row.key: row for row in plan.rows}
    means = {
        x: np.mean([run.accuracy("last") for run in plan.done(rows[f"select{x}"], choice.column)])
        for x in FIXED
    }
    assert choice.x == max(means, key=means.get)
    part = without_selection(plan)
    keys = {row.key for row in part.rows}
    assert not any(key.startswith("select") for key in keys)
    chosen = "vanilla" if choice.x == FIXED[0] else f"fixed{choice.x}"
    best = next(row for row in part.rows if row.key == "best_fixed")
    assert part.done(best, choice.column) == plan.done(rows[chosen], choice.column)


def test_nothing_is_chosen_before_every_weight_was_tried(study):
    plan = load_plan(study.root)
    cells = tuple(cell for cell in plan.cells if cell.row != "select0.5")
    incomplete = type(plan)(**{**vars(plan), "cells": cells})
    assert choices(incomplete) == []
    assert "best_fixed" not in {row.key for row in without_selection(incomplete).rows}


def test_each_control_is_subtracted_and_says_what_it_rules_out(study):
    plan = load_plan(study.root)
    blocks = list(controls(plan, ["last", "best"]))
    table = next(b for b in blocks if getattr(b, "head", ("",))[0] == "control")
    assert {row[1] for row in table.rows} == set(RULES_OUT.values())
    (column,) = plan.columns
    part = without_selection(plan)
    rows = {row.key: row for row in part.rows}
    for row in table.rows:
        key = next(k for k, text in RULES_OUT.items() if text == row[1])
        ours, theirs = (
            np.array([run.accuracy("last") for run in part.done(rows[k], column)])
            for k in ("align", key)
        )
        gaps = ours - theirs
        error = gaps.std(ddof=1) / np.sqrt(TRIALS)
        low, high = gaps.mean() + error * stats.t.ppf([0.025, 0.975], TRIALS - 1)
        assert row[2] == fixed(gaps.mean(), sign=True)
        assert row[3] == f"[{fixed(low, sign=True)}, {fixed(high, sign=True)}]"
        assert row[5] == str(TRIALS)
    (of_alpha,) = [b for b in blocks if getattr(b, "caption", "").startswith("align, α 2.0 minus")]
    means = {
        row.key: np.mean([r.accuracy("last") for r in part.done(row, column)]) for row in part.rows
    }
    (line,) = of_alpha.rows
    assert line[2] == fixed(means["alpha2.0"] - means["scaled_lr_alpha2.0"], sign=True)
    assert list(controls(load_plan(study.root.parents[1] / "grid_d" / "digits"), ["last"])) == []


def test_weightings_are_compared_with_longer_training(study, copy):
    plan = load_recorded(copy, "grid_d")
    heading, text, table = longer(plan, ["last", "best"])
    assert heading.text == "Beside KD, 2 times the epochs" and "2 times the epochs" in text.text
    top1 = {cell.row: cell.done[0].accuracy("last") for cell in plan.cells}
    rows = {row.label: row.key for row in plan.rows}
    keys = [rows[line[0]] for line in table.rows]
    assert keys == ["ours", "previous", "period5", "period10", "auxiliary16", "auxiliary32"]
    factors = {cost.row.key: f"{cost.factor:.2f}" for cost in costs(plan)}
    for key, line in zip(keys, table.rows, strict=True):
        assert line[1:3] == (factors[key], fixed(top1[key] - top1["longer"], sign=True))
    # Its epochs are another number by intention, and no measure of what an epoch costs.
    assert "longer" not in factors
    assert not any(line.startswith("warning") for line in facts(plan))
    assert list(longer(load_plan(study.root), ["last"])) == []


def test_times_of_two_systems_are_not_compared(copy):
    path = record_file(copy, "grid_d", "digits")
    before = {cost.row.key for cost in costs(load_recorded(copy, "grid_d"))}
    assert "period5" in before
    records = read_records(path)
    for record in records:
        if record["row"] == "period5":
            record["recorded"]["system"] = "another"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    plan = load_recorded(copy, "grid_d")
    assert {cost.row.key for cost in costs(plan)} == before - {"period5"}
    assert "period5" not in {c.row.key for c in compare_rows(plan, at_equal_time("last"))}
    assert "period5" in {c.row.key for c in compare_rows(plan, at_equal_epochs("last"))}


def _lift(path: Path, row: str, points: float) -> None:
    """Make a row's accuracies those of align and ``points`` more, give or take a little."""
    records = read_records(path)
    align = {r["trial"]: r["result"]["last_top1"] for r in records if r["row"] == "align"}
    lines = []
    for record in records:
        if record["row"] == row:
            top1 = align[record["trial"]] + points + 1e-3 * record["trial"]
            record["result"].update(last_top1=top1, best_top1=max(top1, 99.0))
            record["epochs"][-1]["test_acc"] = top1
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))


def test_a_reading_takes_the_shipped_ones_place_by_the_rule_alone(copy):
    path = record_file(copy, "grid_b", "digits")
    _lift(path, "align", 0.0)
    for key in CANDIDATES:
        _lift(path, key, -0.5)
    heading, _, table, verdict = readings(load_recorded(copy, "grid_b"), ["last"])
    assert heading.text == "Readings"
    assert [row[1] for row in table.rows] == ["−0.50"] * len(CANDIDATES)
    assert verdict.points == ("by the rule, the shipped one stays",)
    _lift(path, "ridge", 2.0)
    _lift(path, "printed", 1.0)
    *_, table, verdict = readings(load_recorded(copy, "grid_b"), ["last"])
    assert verdict.points == ("by the rule, orthogonal, ridge 0.05 should take its place",)
    # One trial has no scatter to judge it by, however large its difference.
    records = [r for r in read_records(path) if (r["row"], r["trial"]) != ("ridge", 1)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    *_, verdict = readings(load_recorded(copy, "grid_b"), ["last"])
    assert verdict.points == ("by the rule, printed should take its place",)
    assert list(readings(load_recorded(copy, "grid_d"), ["last"])) == []


def test_figures_of_grid_b(study):
    plan = without_selection(load_plan(study.root))
    drawn = {d.name: d.figure for d in draw(plan, "last")}
    assert {"weights", "cosines", "sensitivity_absolute", "sensitivity_relative"} <= drawn.keys()
    line = drawn["sensitivity_absolute"].axes[0].containers[0][0]
    assert np.allclose(line.get_xdata(), FIXED)


def test_dynamics_are_tabled_as_they_were_logged(study):
    plan = load_plan(study.root)
    (table,) = dynamics_tables(plan)
    rows = {row.label: row for row in plan.rows}
    assert "KD" not in {line[0] for line in table.rows}  # fixed weights log nothing
    keys = {"weight of ce": "ce", "cos(ce, ref)": "c_ce", "share of conflicts": "conflict"}
    for line in table.rows:
        runs = plan.done(rows[line[0]], plan.columns[0])
        assert len(runs) == TRIALS
        for head, key in keys.items():
            means = np.mean([[e["crossbatch"][key] for e in run.history] for run in runs], axis=0)
            low, high, last = map(fixed, (means.min(), means.max(), means[-1]))
            assert line[table.head.index(head)] == f"{low} to {high},\nlast {last}"


def test_controls_of_another_method_say_what_they_rule_out(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "_POLL_SECONDS", 0.0)
    request = grid(tmp_path, "grid_e", trials=TRIALS, methods=("RKD", "AT"))
    train(request)
    plan = load_recorded(request.record, "grid_e")
    _, _, *tables = controls(plan, ["last"])
    assert [t.caption.split(" minus")[0] for t in tables] == ["RKD + ours", "AT + ours"]
    (rkd, at), runs = tables, {row.label: row for row in plan.rows}
    assert len(rkd.rows) == len(at.rows) == 3
    assert "plain RKD" in rkd.rows[0][1] and "plain AT" in at.rows[0][1]
    for line in rkd.rows:
        ours, control = (plan.done(runs[x], plan.columns[0]) for x in ("RKD + ours", line[0]))
        gains = [
            a.accuracy("last") - b.accuracy("last") for a, b in zip(ours, control, strict=True)
        ]
        assert line[2] == fixed(np.mean(gains), sign=True)


def test_steps_are_compared_with_plain_ones(study):
    """The factor of the control that takes steps as long, whose learning rate is made of it."""
    plan = load_plan(study.root)
    (table,) = dynamics_tables(plan)
    lengths = {line[0]: line[table.head.index(STEP)] for line in table.rows}
    (source,) = (row for row in plan.rows if row.key == "align")
    factors = []
    for record in read_records(record_file(study.record, "grid_b", "digits")):
        if record["row"] == "scaled_lr":
            factors.append(record["config"]["SOLVER.LR"] / 0.05)
    assert len(factors) == TRIALS
    assert lengths[source.label] == fixed(np.mean(factors))


def test_steps_of_a_run_that_has_not_logged_them_are_unknown():
    node = {"norm_update": 3.0, "norm_sum": 2.0}
    entry = {"steps": 4, "lr": 0.1, "crossbatch": node}
    later = {"steps": 4, "lr": 0.3, "crossbatch": {"norm_update": 1.0, "norm_sum": 2.0}}
    assert relative_step([entry, later]) == pytest.approx((0.1 * 3 + 0.3 * 1) / (0.4 * 2))
    for lacking in ({"crossbatch": {}}, {"crossbatch": None}, {"lr": None}):
        assert relative_step([entry, {**later, **lacking}]) is None
    assert relative_step([{k: v for k, v in entry.items() if k != "steps"}]) is None
    assert relative_step([]) is None
    assert relative_step([{**entry, "crossbatch": {**node, "norm_sum": 0.0}}]) is None


# ---- from records ----------------------------------------------------------------------------


def test_records_give_the_report_of_the_folders(study):
    folders = load_plan(study.root)
    recorded = load_recorded(study.record, "grid_b")
    assert recorded.states == folders.states
    assert recorded.root.name == "digits" and recorded.dataset == "digits"
    a, b = (
        compare_rows(without_selection(p), at_equal_epochs("last")) for p in (folders, recorded)
    )
    assert [c.row for c in a] == [c.row for c in b]
    assert [c.pooled for c in a] == [c.pooled for c in b]
    assert markdown(recorded).split("## Accuracy")[1] == markdown(folders).split("## Accuracy")[1]
    (teacher,) = recorded.teachers.values()
    assert teacher.state == "done"


def test_other_overrides_are_counted_and_can_be_asked_for(copy):
    path = record_file(copy, "grid_b", "digits")
    some = [r for r in read_records(path) if r["row"] == "vanilla"]
    for record in some:
        append(path, {**record, "overrides": ["SOLVER.EPOCHS", "9"], "hash": "other"})
    plan = load_recorded(copy, "grid_b")
    (remark,) = plan.remarks
    assert remark.startswith("left out: 2 runs with SOLVER.EPOCHS 9 (--settings ")
    assert len(plan.runs) == ROWS * TRIALS
    assert remark in to_markdown(build(plan, "last", [])).replace("\\", "")
    asked = load_recorded(copy, "grid_b", settings=remark.split()[-1].rstrip(")"))
    assert [run.trial for run in asked.runs] == [0, 1]
    with pytest.raises(DataError, match="no runs of settings nothing"):
        load_recorded(copy, "grid_b", settings="nothing")


def test_changed_settings_and_repeats_are_not_mixed(copy):
    path = record_file(copy, "grid_b", "digits")
    first = next(r for r in read_records(path) if (r["row"], r["trial"]) == ("printed", 0))
    # The same run once more, from another machine, with another result: the first one counts.
    text = path.read_text()
    again = {**first, "result": {**first["result"], "seconds": 1e6}}
    path.write_text(text + json.dumps(again) + "\n")
    plan = load_recorded(copy, "grid_b")
    assert len(plan.runs) == ROWS * TRIALS
    assert max(run.result["seconds"] for run in plan.runs) < 1e6
    # A configuration file that has changed: its runs are no trials of the same cell.
    changed = {**first, "config": {**first["config"], "SOLVER.MOMENTUM": 0.5}, "hash": "new"}
    path.write_text(text + json.dumps(changed) + "\n")
    plan = load_recorded(copy, "grid_b")
    assert plan.remarks == ("left out: 2 runs of cells whose settings have changed since",)
    (row,) = [row for row in plan.rows if row.key == "printed"]
    assert [run.trial for run in plan.done(row, plan.columns[0])] == [0]


def test_failed_and_unbelievable_records_are_told(copy):
    path = record_file(copy, "grid_b", "digits")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines:
        if (record["row"], record["trial"]) == ("cone_ema", 1):
            record["result"]["last_top1"] += 1
        if (record["row"], record["trial"]) == ("cone_ema", 0):
            record["state"] = "failed"
            record["failure"] = {"exit_code": 3, "tail": ["out of memory"], "finished": "x"}
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    plan = load_recorded(copy, "grid_b")
    assert (plan.states["failed"], plan.states["broken"]) == (1, 1)
    text = markdown(plan)
    assert "exit status 3" in text and "out of memory" in text and "accuracies disagree" in text


@pytest.mark.parametrize(
    ("table", "dataset", "words"),
    [
        ("grid_a", None, "no records of grid_a in .*there: grid_b on digits, grid_d on digits"),
        ("grid_b", "glyphs", "no records of grid_b on glyphs"),
    ],
)
def test_missing_records_are_one_line(study, table, dataset, words):
    with pytest.raises(DataError, match=words):
        load_recorded(study.record, table, dataset)


def test_a_grid_that_is_on_two_data_sets_asks_which(copy):
    shutil.copy(copy / "grid_b-digits.jsonl", copy / "grid_b-fashion_mnist.jsonl")
    with pytest.raises(DataError, match="give --dataset digits | fashion_mnist"):
        load_recorded(copy, "grid_b")


# ---- files -----------------------------------------------------------------------------------


def test_the_report_of_a_grid_is_written(study, tmp_path):
    page = write_report(load_recorded(study.record, "grid_b"), tmp_path / "report")
    text = page.with_name("report.md").read_text()
    assert "## Controls" in text
    assert "trials a pair for 0.15" in text
    csv = page.with_name("report.csv").read_text()
    # Runs on held-out images are on file, but in no table of test accuracies.
    assert csv.count("selection") == len(FIXED) * TRIALS
    assert "select0.1" not in text


def test_evidence_has_every_table_with_its_command_and_the_notes(copy, tmp_path):
    (copy / "notes").mkdir()
    (copy / "notes" / "grid_b-digits.md").write_text("*By hand:* a_b & c < d.\n")
    (copy / "notes" / "evidence.md").write_text("First of all.\n")
    page = write_evidence(copy, tmp_path / "docs")
    text = page.read_text()
    assert text.index("First of all.") < text.index("## Grid B") < text.index("## Grid D")
    assert text.count("The best epoch is the last one in every run") == 2
    assert "best epoch, chosen" not in text
    assert "\n\n*By hand:* a_b & c < d.\n\n" in text
    (command,) = [x for x in text.splitlines() if x.startswith("python tools/reproduce.py grid_b")]
    assert f"--dataset digits --trials {TRIALS} --record {copy}" in command
    assert "SOLVER.EPOCHS 2 SOLVER.LR_DECAY_STAGES" in command
    assert f"python tools/report.py grid_b --dataset digits --records {copy}" in text
    pictures = [x.split("](")[1].rstrip(")") for x in text.splitlines() if x.startswith("![")]
    assert len(pictures) > 5
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    shown = {(page.parent / name).name for name in pictures}
    assert {file.name for file in (page.parent / "evidence").iterdir()} == shown
    with pytest.raises(DataError, match="no records in"):
        write_evidence(tmp_path, tmp_path / "docs")


@pytest.fixture
def trained_by(monkeypatch):
    """Rows, columns and trials that lines of tools/reproduce.py ask for."""

    def expand(lines: list[str]) -> set[tuple[str, str, int]]:
        found = set()
        for line in lines:
            monkeypatch.setattr("sys.argv", shlex.split(line)[1:])
            given = parse_arguments()
            table = build_table(given.table, given.dataset, given.pairs, given.methods)
            for cell, trial in itertools.product(table.cells, range(given.trials)):
                found.add((cell.row.key, cell.column.key, trial))
        return found

    return expand


@pytest.mark.parametrize(
    ("fewer", "none", "count"),
    [
        ((), (), 1),
        (("fixed0.2", "select0.2"), (), 2),
        (("mean_weights", "alpha0.25"), ("rescale1", "shuffled"), 2),
    ],
)
def test_the_commands_train_the_runs_on_record_and_no_others(copy, trained_by, fewer, none, count):
    path = record_file(copy, "grid_b", "digits")
    kept = [
        r
        for r in read_records(path)
        if r["row"] not in none and not (r["row"] in fewer and r["trial"] == 1)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    *lines, report = commands(load_recorded(copy, "grid_b", "digits"), copy, "")
    assert report.startswith("python tools/report.py grid_b")
    assert len(lines) == count
    there = {(r["row"], r["column"], r["trial"]) for r in kept if r["row"] != "teacher"}
    assert trained_by(lines) == there
    trials = [int(re.search(r"--trials (\d+)", line)[1]) for line in lines]
    assert trials == sorted(trials)


def test_commands_of_pairs_with_different_trials(study, trained_by, tmp_path):
    request = grid(tmp_path, "grid_a", trials=2)
    train(request)
    path = record_file(request.record, "grid_a", "digits")
    there = [r for r in read_records(path) if r["row"] != "teacher"]
    first = there[0]["column"]
    other = [{**r, "column": "wrn16_2_wrn16_1"} for r in there if r["trial"] == 0]
    kept = [r for r in there if r["trial"] == 0 or r["row"].startswith("rkd")]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept + other))
    *lines, _ = commands(load_recorded(request.record, "grid_a", "digits"), request.record, "")
    assert trained_by(lines) == {(r["row"], r["column"], r["trial"]) for r in kept + other}
    assert "--methods RKD" in lines[-1] and f"--pairs {first}" in lines[-1]
    assert len(lines) == 2


def test_evidence_has_both_selection_rules_where_they_differ(copy, tmp_path):
    path = record_file(copy, "grid_d", "digits")
    changed = read_records(path)
    (ours,) = [r for r in changed if r["row"] == "ours"]
    ours["result"]["best_top1"] += 1.5
    path.write_text("".join(json.dumps(r) + "\n" for r in changed))
    same, differing = write_evidence(copy, tmp_path / "docs").read_text().split("## Grid D")
    assert "The best epoch is the last one" in same and "best epoch, chosen" not in same
    for what in ("Test top-1 in %", "Mean paired difference, percentage points of test top-1"):
        for rule in ("last epoch", "best epoch, chosen on the test images themselves"):
            assert differing.count(f"**{what}, {rule}") == 1
    tables = [x for x in differing.split("\n\n") if "| ours | KD |" in x]
    last, best = (
        float(x.split("| ours | KD | ")[1].split(" |")[0].replace("−", "-"))
        for x in (tables[0], tables[2])
    )
    assert best == pytest.approx(last + 1.5, abs=0.011)


def test_evidence_shows_the_runs_of_all_settings_apart(copy, tmp_path):
    path = record_file(copy, "grid_d", "digits")
    for record in [r for r in read_records(path) if r["row"] in ("vanilla", "ours")]:
        append(path, {**record, "overrides": ["SOLVER.EPOCHS", "9"], "hash": "other"})
    usual = load_recorded(copy, "grid_d")
    asked = usual.remarks[0].split()[-1].rstrip(")")
    text = write_evidence(copy, tmp_path / "docs").read_text()
    most, others = text.split("## Grid D")[1:]
    assert f"{len(usual.runs)} runs: {len(usual.runs)} done." in most
    assert others.splitlines()[0].endswith(f": digits, settings {asked}")
    chosen = load_recorded(copy, "grid_d", settings=asked)
    assert f"{len(chosen.runs)} runs: {len(chosen.runs)} done." in others
    assert "SOLVER.EPOCHS 9" in others and f"--records {copy} --settings {asked}" in others
    pictures = re.findall(r"\]\((evidence/.*?)\)", text)
    assert len(pictures) == len(set(pictures))
    assert any(f"grid_d-digits-{asked}-" in name for name in pictures)


def test_the_tool_reads_records(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Of a grid the records are the default.
    main(["grid_d"])
    assert "8 done" in capsys.readouterr().out
    assert (tmp_path / "output" / "grid_d" / "digits" / "report" / "report.html").exists()
    main(["grid_d", "--records", str(copy), "--out", "pages"])
    assert (tmp_path / "pages" / "report.md").exists()
    (copy / "grid_b-digits.jsonl").unlink()
    main(["evidence", "--out", "docs"])
    assert capsys.readouterr().out.splitlines()[-1] == "docs/evidence.md"
