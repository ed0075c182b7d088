"""Reports of the study's records: equal to the digit, controls, commands, the pages of evidence."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from mdistiller.commands.reproduce import parse_arguments
from mdistiller.errors import DataError
from mdistiller.experiments.derive import relative_step
from mdistiller.experiments.tables import build_table
from mdistiller.experiments.tables.study import CANDIDATES, FIXED, RULES_OUT
from mdistiller.report import Results, evidence, load_all, load_table, write_evidence
from mdistiller.report.comparison import costs
from mdistiller.report.contents import build
from mdistiller.report.csv_files import runs_csv
from mdistiller.report.document import Table, render
from mdistiller.report.facts import facts
from mdistiller.report.figures import CAPTIONS, Drawn, draw
from mdistiller.report.numbers import fixed
from mdistiller.report.study import choices, controls, longer, readings
from mdistiller.report.study import tested as without_selection
from mdistiller.report.tables import STEP, dynamics_tables
from tools.report import main

from .test_report import lines

RECORDS = Path(__file__).parents[1] / "results"
# The numbers of every table that a report had at commit b53cf89, by settings, caption and row.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "report.json").read_text(encoding="utf-8"))
NUMBER = re.compile(r"[−+]?\d+(?:\.\d+)?")
# What is on record since is not in them.
QUERIES, UNTIL = 21, "2026-11-25T14"


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The records of the first study."""
    folder = tmp_path_factory.mktemp("first") / "results"
    folder.mkdir()
    asked = (RECORDS / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:QUERIES]
    (folder / "queries.jsonl").write_text("\n".join(asked) + "\n", encoding="utf-8")
    runs = (RECORDS / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [line for line in runs if json.loads(line)["recorded"]["at"] < UNTIL]
    (folder / "runs.jsonl").write_text("\n".join(runs) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def study(first) -> dict[str, Results]:
    """All tables of the first study by name, data set and settings."""
    return {f"{r.name}-{r.dataset}-{r.settings}": r for r in load_all(first)}


@pytest.fixture(scope="module")
def grid_b(study) -> Results:
    return study["grid_b-glyphs-f25995"]


@pytest.fixture(scope="module")
def grid_d(study) -> Results:
    return study["grid_d-glyphs-f25995"]


@pytest.fixture
def few(first, tmp_path):
    """Makes a folder of records of some tables, the runs changed by a function."""

    def make(tables=("grid_d",), edit=lambda run: run) -> Path:
        for name, wanted in (("queries", lambda x: x["table"] in tables), ("runs", edit)):
            text = (first / f"{name}.jsonl").read_text(encoding="utf-8")
            old = map(json.loads, text.splitlines())
            new = [x for x in old if wanted(x)]
            text = "".join(json.dumps(x) + "\n" for x in new)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return tmp_path

    return make


def test_every_number_is_that_of_the_first_pages(study):
    assert study.keys() == GOLDEN.keys()
    assert sum(len(tables) for tables in GOLDEN.values()) == 94
    for name, tables in GOLDEN.items():
        blocks = build(study[name], "last", {}).blocks
        found = {b.caption.split("; be")[0]: b.frame for b in blocks if type(b) is Table}
        verdict = next(frame for frame in found.values() if "verdict" in frame.index.names)
        for caption, rows in tables.items():
            if caption.startswith("Mean paired difference"):
                best = [c for c in verdict.columns if c.startswith("best epoch")]
                frame = verdict[best if "best epoch" in caption else ["difference", "95 % CI"]]
            else:
                frame = found[caption]
            labels = frame.index.get_level_values(0)
            shown = {
                label: " ".join(NUMBER.findall(" ".join(row)))
                for label, row in zip(labels, frame.to_numpy().tolist(), strict=True)
            }
            assert shown == rows, (name, caption)


# ---- controls --------------------------------------------------------------------------------


def test_weights_are_chosen_by_held_out_accuracy_alone(grid_b):
    (choice,) = choices(grid_b)
    pair = choice.column.key
    means = {x: grid_b.top1(f"select{x}", pair, "last").mean() for x in FIXED}
    assert choice.x == max(means, key=means.get)
    part = without_selection(grid_b)
    assert not any(row.key.startswith("select") for row in part.rows)
    chosen = "vanilla" if choice.x == FIXED[0] else f"fixed{choice.x}"
    assert list(part.top1("best_fixed", pair, "last")) == list(grid_b.top1(chosen, pair, "last"))
    # Nothing is chosen before every weight was tried.
    fewer = replace(grid_b, runs=grid_b.runs[grid_b.runs["row"] != "select0.5"])
    assert choices(fewer) == []
    assert "best_fixed" not in {row.key for row in without_selection(fewer).rows}


def test_each_control_is_subtracted_and_says_what_it_rules_out(grid_b):
    _, _, of_align, of_alpha, chosen, _ = controls(grid_b, "last")
    assert {row[1] for row in lines(of_align)} == set(RULES_OUT.values())
    assert [row[0] for row in lines(chosen) if "*" in row[1]] == ["0.2 : 0.8"]
    part, (column,) = without_selection(grid_b), grid_b.columns
    for row in lines(of_align):
        key = next(k for k, text in RULES_OUT.items() if text == row[1])
        ours, theirs = (part.cell(k, column.key).set_index("trial") for k in ("align", key))
        gaps = (ours["last_top1"] - theirs["last_top1"]).dropna()
        error = gaps.std(ddof=1) / np.sqrt(len(gaps))
        low, high = gaps.mean() + error * stats.t.ppf([0.025, 0.975], len(gaps) - 1)
        assert row[2:4] == (
            fixed(gaps.mean(), sign=True),
            f"[{fixed(low, 2, True)}, {fixed(high, 2, True)}]",
        )
        assert row[5] == str(len(gaps))
    assert of_alpha.caption.startswith("align, α 2.0 minus control")


def test_controls_of_another_method_say_what_they_rule_out(study):
    _, _, of_rkd = controls(study["grid_e-fashion_mnist-f25995"], "last")
    assert of_rkd.caption.startswith("RKD + ours minus control")
    assert "plain RKD" in lines(of_rkd)[0][1]


def test_pages_say_which_alpha_the_runs_had(study, grid_b):
    """The grids set the default of their time, which no command on a page shows."""
    name = "cross-batch weighting: CROSSBATCH.ALPHA"
    assert f"{name} 0.5" in facts(study["grid_a-glyphs-f25995"])
    (line,) = [fact for fact in facts(grid_b) if fact.startswith(name)]
    assert set(re.findall(r"([\d.]+) \(\d+ runs\)", line)) == {"0.5", "0.25", "1.0", "2.0"}
    fixed_weights = grid_b.runs["trainer"] != "crossbatch"
    assert name not in " ".join(facts(replace(grid_b, runs=grid_b.runs[fixed_weights])))


def test_weightings_are_compared_with_longer_training(grid_b, grid_d):
    heading, text, table = longer(grid_d, "last")
    assert heading.text == "Beside KD, 2 times the epochs" and "2 times the epochs" in text.text
    factors = {cost.row.label: f"{cost.factor:.2f}" for cost in costs(grid_d)}
    assert [row[:2] for row in lines(table)] == list(factors.items())
    # Its epochs are another number by intention, and no measure of what an epoch costs.
    assert "KD, 2 times the epochs" not in factors
    assert not any(line.startswith("warning") for line in facts(grid_d))
    for other in (
        list(longer(grid_b, "last")),
        list(controls(grid_d, "last")),
        list(readings(grid_d, "last")),
    ):
        assert other == []


def test_a_reading_takes_the_shipped_ones_place_by_the_rule_alone(grid_b):
    def judged(gains: dict[str, float], trials=5) -> str:
        """The verdict, where readings are so much better than align, give or take a little."""
        runs = grid_b.runs[grid_b.runs["trial"] < trials].copy()
        align = runs[runs["row"] == "align"].set_index("trial")["last_top1"]
        for key in CANDIDATES:
            own = runs["row"] == key
            trial = runs.loc[own, "trial"]
            runs.loc[own, "last_top1"] = trial.map(align) + gains.get(key, -0.5) + 1e-3 * trial
        heading, _, table, verdict = readings(replace(grid_b, runs=runs), "last")
        assert heading.text == "Readings" and len(table.frame) == len(CANDIDATES)
        return verdict.points[0]

    assert judged({}) == "by the rule, the shipped one stays"
    better = {"ridge": 2.0, "printed": 1.0}
    assert judged(better) == "by the rule, orthogonal, ridge 0.05 should take its place"
    # One trial has no scatter to judge it by, however large its difference.
    assert judged(better, trials=1) == "by the rule, the shipped one stays"


def test_dynamics_are_tabled_as_they_were_logged(grid_b):
    (table,) = dynamics_tables(grid_b)
    assert "KD" not in table.frame.index  # fixed weights log nothing
    rows, (column,) = {row.label: row.key for row in grid_b.rows}, grid_b.columns
    keys = {"weight of ce": "ce", "cos(ce, ref)": "c_ce", "share of conflicts": "conflict"}
    for label, line in table.frame.reset_index(level=0).set_index("method").iterrows():
        runs = grid_b.cell(rows[label], column.key)["history"]
        for head, key in keys.items():
            if "crossbatch" in runs.iloc[0][-1]:
                means = np.mean([[e["crossbatch"][key] for e in run] for run in runs], axis=0)
                low, high, last = map(fixed, (means.min(), means.max(), means[-1]))
                assert line[head] == f"{low} to {high},\nlast {last}"
        steps = list(map(relative_step, runs))
        assert line[STEP] == ("" if None in steps else fixed(np.mean(steps)))


def test_figures_of_grid_b(grid_b):
    drawn = {
        d.name: d.figure for d in draw(without_selection(grid_b), "last", ("curves", "cosines"))
    }
    assert drawn.keys() >= {"weights", "sensitivity_absolute", "sensitivity_relative"}
    line = drawn["sensitivity_absolute"].axes[0].containers[0][0]
    assert np.allclose(line.get_xdata(), FIXED)


# ---- records ---------------------------------------------------------------------------------


def test_times_of_two_systems_are_not_compared(few, grid_d):
    rows = {cost.row.key: cost.n for cost in costs(grid_d)}
    of_period5 = set(grid_d.cell("period5", "res20_res8")["id"])

    def elsewhere(run):
        run["machine"]["system"] = "other" if run["id"] in of_period5 else run["machine"]["system"]
        return run

    found = {
        cost.row.key: cost.n for cost in costs(load_table("grid_d", records=few(edit=elsewhere)))
    }
    assert found == {key: n for key, n in rows.items() if key != "period5"}


def test_failed_waiting_and_unbelievable_records_are_told(few, grid_d):
    cell = grid_d.cell("period5", "res20_res8")["id"]

    def edit(run):
        if run["id"] == cell.iloc[0]:
            run.update(state="failed", failure={"exit_code": 3, "tail": ["out of memory"]})
        if run["id"] == cell.iloc[1]:
            run["result"]["last_top1"] += 1
        return run["id"] != cell.iloc[2] and run

    results = load_table("grid_d", records=few(edit=edit))
    counts = {"done": 27, "running": 0, "failed": 1, "waiting": 1, "broken": 1}
    assert results.states == counts
    text = render(build(results, "last", {}), "md")
    assert "exit status 3" in text and "out of memory" in text and "accuracies disagree" in text


def test_other_settings_are_counted_and_can_be_asked_for(first, grid_d):
    (remark,) = grid_d.remarks
    assert remark.startswith("left out: 7 runs with SOLVER.EPOCHS 5 SOLVER.LR_DECAY_STAGES [2, 4]")
    asked = load_table("grid_d", records=first, settings=remark.split()[-1].rstrip(")"))
    assert len(asked.runs) == 7
    with pytest.raises(DataError, match="no runs of settings nothing: f25995"):
        load_table("grid_d", records=first, settings="nothing")
    with pytest.raises(DataError, match="no grid_d on digits in .*grid_b on glyphs"):
        load_table("grid_d", "digits", records=first)
    with pytest.raises(DataError, match="several data sets; give --dataset fashion_mnist | glyphs"):
        load_table("grid_a", records=first)


def test_the_commands_ask_for_the_runs_on_record_and_no_others(study, monkeypatch):
    for results in study.values():
        found = set()
        for line in results.commands:
            monkeypatch.setattr("sys.argv", shlex.split(line)[1:])
            given = parse_arguments()
            table = build_table(given.table, given.dataset, given.pairs, given.methods)
            for cell, trial in itertools.product(table.cells, range(given.trials)):
                found.add((cell.row.key, cell.column.key, trial))
            # Without it all would be trained anew, under another teacher.
            assert "DISTILLER.TEACHER_CKPT" in given.opts
        runs = results.runs[["row", "column", "trial"]]
        assert found == set(runs.itertuples(index=False, name=None)), results.name


# ---- pages -----------------------------------------------------------------------------------


def test_evidence_has_every_table_with_its_commands_and_the_notes(few, tmp_path, monkeypatch):
    empty = [Drawn(key, caption, Figure()) for key, caption in CAPTIONS.items()]
    monkeypatch.setattr(evidence, "draw", lambda *_: empty)  # test_report_files.py draws them
    monkeypatch.setattr(evidence, "save_png", lambda figure: b"")
    records = few(("grid_d", "grid_e"))
    (records / "notes").mkdir()
    (records / "notes" / "grid_e-fashion_mnist.md").write_text("*By hand:* a_b & c < d.\n")
    (records / "notes" / "results.md").write_text("First of all.\n")
    page = write_evidence(records, tmp_path / "docs")
    text = page.read_text(encoding="utf-8")
    assert text.index("First of all.") < text.index("## [Grid D") < text.index("## [Grid E")
    assert "| RKD + ours | RKD | better | +0.94 |" in text
    archive = (page.parent / "results" / "archive.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((results/grid_.*?\.md)\)", text)
    links += [f"results/{name}" for name in re.findall(r"^- \[.*\]\((.*)\)", archive, re.MULTILINE)]
    links.sort()
    names = {Path(link).stem for link in links}
    assert names == {"grid_d-glyphs", "grid_d-glyphs-95500b", "grid_e-fashion_mnist"}
    shown = []
    for link in links:
        part = (page.parent / link).read_text(encoding="utf-8")
        assert "python tools/reproduce.py grid_" in part
        assert f"--records {records} --settings" in part
        shown += re.findall(r"^!\[.*\]\((.*)\)$", part, re.MULTILINE)
    assert "\n\n*By hand:* a_b & c < d.\n\n" in part
    assert len(shown) == len(set(shown)) > 10
    pictures = {p.name for p in (page.parent / "results").glob("*.png")}
    assert pictures == set(shown)


def test_the_tool_reads_records(few, tmp_path, monkeypatch, capsys):
    few(("grid_e",))
    monkeypatch.chdir(tmp_path)
    # Of a grid those in results/ are the default.
    (tmp_path / "results").mkdir()
    for name in ("runs", "queries"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "results" / f"{name}.jsonl")
    main(["grid_e"])
    shown = capsys.readouterr().out.splitlines()
    page = Path("output/grid_e/fashion_mnist/report/report.html")
    assert shown[-2:] == ["20 done, 0 running, 0 failed, 0 waiting, 0 broken", str(page)]
    assert any(line.startswith("RKD + ours") and "+0.94" in line for line in shown)
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert "## Controls" in text and "trials a pair for 0.15" in text


def test_runs_on_held_out_images_are_in_no_table_of_test_accuracies(grid_b):
    assert "select0.1" not in render(build(grid_b, "last", {}), "md")
    found = list(csv.DictReader(io.StringIO(runs_csv(grid_b))))
    assert sum(run["variant"] == "selection" for run in found) == len(FIXED) * 5
    assert {run["CROSSBATCH.ALPHA"] for run in found} >= {"0.25", "1.0", "2.0"}
