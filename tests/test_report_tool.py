"""tools/report.py as a user runs it, figures' contents, and runs that the engine really left."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mdistiller.dataset import build_model
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training
from mdistiller.errors import DataError
from mdistiller.report import compare_runs, load_plan
from mdistiller.report.comparison import costs
from mdistiller.report.figures import draw, save
from mdistiller.report.figures.sensitivity import sensitivity_absolute, sensitivity_relative
from mdistiller.report.figures.style import line_style
from tools.report import main

from .report_runs import column, rows_of, simulate, write_plan, write_run

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """KD and its twin on digits, an epoch each, in the folder of a table."""
    prefix = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    torch.save({"model": build_model("digits", "resnet20", 10).state_dict()}, prefix / "teacher")
    root = prefix / "table1" / "digits"
    rows = rows_of(["KD"])
    pair = {**column(0), "teacher": "resnet20", "student": "resnet8"}
    plan = write_plan(root, rows, [pair], 1, dataset="digits")
    for name, cell in zip(("kd", "crossbatch_kd"), plan["cells"], strict=True):
        opts = {
            "SOLVER.EPOCHS": 1,
            "SOLVER.LR_DECAY_STAGES": [],
            "SOLVER.DEVICE": "cpu",
            "LOG.PREFIX": prefix,
            "EXPERIMENT.PROJECT": "table1/digits",
            "EXPERIMENT.NAME": cell["runs"][0]["folder"],
            "EXPERIMENT.SEED": 0,
            "DISTILLER.TEACHER_CKPT": prefix / "teacher",
        }
        flat = [str(x) for item in opts.items() for x in item]
        run_training(load_cfg(str(ROOT / "configs" / "digits" / f"{name}.yaml"), flat))
    return root


def test_runs_of_the_engine_become_a_report(trained):
    done = run("table1", "--prefix", trained.parents[1])
    assert done.returncode == 0, done.stderr
    page = trained / "report" / "report.html"
    assert done.stdout.splitlines() == [
        "2 done, 0 running, 0 failed, 0 waiting, 0 broken",
        str(page),
    ]
    result = json.loads((trained / "kd_crossbatch-pair0-t0" / "result.json").read_text())
    text = page.read_text()
    assert f"{result['last_top1']:.2f} ± – (1)" in text
    assert result["device"] in text
    (cost,) = costs(load_plan(trained))
    assert cost.factor > 0
    names = {p.stem for p in page.parent.glob("*.svg")}
    assert names == {"curves", "differences", "weights", "cosines", "equal_time"}


def test_runs_of_the_engine_side_by_side(trained, tmp_path):
    folders = [trained / f"{name}-pair0-t0" for name in ("kd", "kd_crossbatch")]
    done = run("compare", *folders, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (trainer,) = (line.split() for line in lines if line.startswith("SOLVER.TRAINER"))
    assert trainer == ["SOLVER.TRAINER", "base", "crossbatch"]
    # Equal keys are not shown.
    assert not any(line.startswith("SOLVER.LR") for line in lines)
    last = [json.loads((f / "result.json").read_text())["last_top1"] for f in folders]
    (shown,) = (line.split()[2:] for line in lines if line.startswith("last epoch  "))
    assert shown == [f"{x:.2f}" for x in last]
    assert any(line.startswith("weight of kd, first → last epoch") for line in lines)
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["compare.html", "compare.png", "compare.svg"]


def test_a_run_under_way_can_be_compared(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name / "kd", [60.0, 65.5, 65.0], seed=0, seconds=1.5)
    (tmp_path / "b" / "kd" / "result.json").unlink()
    text = compare_runs([tmp_path / "a" / "kd", tmp_path / "b" / "kd"])
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    # The two have the same name: the folder above tells them apart.
    assert any("a/kd" in line and "b/kd" in line for line in text.splitlines())
    assert lines["state"] == ["state", "done", "waiting"]
    assert lines["number of the best epoch"][-2:] == ["2", "2"]
    assert lines["cost factor to the first run"][-1] == "1.00"
    assert "Differences of the configurations: none" in text


def test_what_cannot_be_compared_is_refused(tmp_path):
    write_run(tmp_path / "run", [60.0], seed=0)
    with pytest.raises(DataError, match="given twice"):
        compare_runs([tmp_path / "run", tmp_path / "x" / ".." / "run"])
    (tmp_path / "run" / "result.json").write_text("{")
    with pytest.raises(DataError, match="is broken: result.json: damaged JSON"):
        compare_runs([tmp_path / "run"])
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no complete epoch"):
        compare_runs([tmp_path / "run"])
    write_run(tmp_path / "other", [60.0], seed=0)
    (tmp_path / "other" / "config.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"config.yaml is damaged"):
        compare_runs([tmp_path / "other"])


def test_only_differing_keys_are_shown(tmp_path):
    for name, lr in (("a", 0.05), ("b", 0.1)):
        write_run(tmp_path / name, [60.0], seed=0)
        config = {"SOLVER": {"LR": lr, "EPOCHS": 1}, "ONLY_B": 1} if lr == 0.1 else {}
        (tmp_path / name / "config.yaml").write_text(
            yaml.safe_dump(config or {"SOLVER": {"LR": lr, "EPOCHS": 1}})
        )
    text = compare_runs([tmp_path / "a", tmp_path / "b"])
    table = text.split("What came of it")[0].splitlines()
    assert [line.split() for line in table if line.startswith(("SOLVER", "ONLY"))] == [
        ["ONLY_B", "1"],
        ["SOLVER.LR", "0.05", "0.1"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table7", "--prefix", "."), "no plan.json of table7 below ."),
        (("./empty",), "empty has no plan.json"),
        (("./damaged",), "damaged/plan.json is damaged (line 1"),
        (("./binary",), "cannot read binary/plan.json"),
        (("./list",), "list/plan.json is not a plan"),
        (("compare", "empty"), "empty is no run's folder"),
        (("compare", "nowhere"), "nowhere is no run's folder"),
    ],
)
def test_bad_input_is_one_line_and_a_status(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    contents = {"damaged": b"{", "binary": b"\xff\xfe\x00", "list": b"[1]"}
    for name in ("empty", *contents):
        (tmp_path / name).mkdir()
    for name, content in contents.items():
        (tmp_path / name / "plan.json").write_bytes(content)
    with pytest.raises(SystemExit) as status:
        main(list(arguments))
    assert status.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--help"], "report.py compare"), (["compare", "--help"], "differences are to the first")],
)
def test_help_of_both_commands(capsys, arguments, text):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert text in capsys.readouterr().out


def sensitivity_plan(folder: Path, weights=(3, 5, 7), method="RKD"):
    rows = [
        {**rows_of([method])[0], "key": f"x{i}", "label": f"{i / 10}", "x": i / 10} for i in weights
    ]
    write_plan(folder, rows, [column(0)], 2, kind="sensitivity", printed=False)
    for i in weights:
        for trial in (0, 1):
            # Trials differ by 5 points, and by 0.2 in what a weight of 0.3 loses.
            accuracy = 70 + 5 * trial - (0.4 + 0.2 * trial) * (i == 3) + 0.1 * (i == 7)
            write_run(folder / f"x{i}-pair0-t{trial}", [accuracy], seed=trial)
    return load_plan(folder)


def test_sensitivity_is_the_paired_difference_to_equal_weights(tmp_path):
    plan = sensitivity_plan(tmp_path)
    (axes,) = sensitivity_relative(plan, "last").axes
    (container,) = axes.containers
    line, _, (bars,) = container
    assert np.allclose(line.get_ydata(orig=False), [-0.5, 0, 0.1])
    # Paired: the 5 points between the trials are not in the bars.
    half = [(s[1, 1] - s[0, 1]) / 2 for s in bars.get_segments()]
    assert np.allclose(half, [0.2 / 2**0.5, 0, 0], atol=1e-9)
    absolute = sensitivity_absolute(plan, "last").axes[0]
    assert np.allclose(absolute.containers[0][0].get_ydata(orig=False), [72.0, 72.5, 72.6])
    (upper,) = absolute.child_axes
    names = [tick.get_text() for tick in upper.get_xticklabels()]
    assert names == ["0.6 : 1.4", "1.0 : 1.0", "1.4 : 0.6"]


def test_the_weights_of_kd_are_not_shown_as_factors(tmp_path):
    figure = sensitivity_absolute(sensitivity_plan(tmp_path, method="KD"), "last")
    assert figure.axes[0].child_axes == []


def test_one_weight_is_no_sensitivity(tmp_path):
    assert sensitivity_absolute(sensitivity_plan(tmp_path, weights=(3,)), "last") is None


def test_sensitivity_without_equal_weights_has_no_differences(tmp_path):
    assert sensitivity_relative(sensitivity_plan(tmp_path, weights=(3, 7)), "last") is None


def test_figures_are_labelled_and_lines_told_apart_without_colour(tmp_path):
    plan = write_plan(tmp_path, rows_of(["KD", "RKD"]), [column(i) for i in range(5)], 2)
    simulate(tmp_path, plan, 16)
    drawn = {d.name: d.figure for d in draw(load_plan(tmp_path), "last")}
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
    ends = [run.accuracy("last") for run in load_plan(tmp_path).cells[0].runs]
    assert lines[0].get_ydata()[-1] == pytest.approx(sum(ends) / 2)


def test_no_two_of_many_lines_look_alike():
    styles = [line_style(i, dashed) for i in range(25) for dashed in (False, i < 10)]
    looks = {(s["marker"], s["linestyle"], s["markerfacecolor"]) for s in styles}
    assert len(looks) == 25 + 10


def test_pictures_open_and_are_not_empty(tmp_path):
    plan = write_plan(tmp_path, rows_of(["KD"]), [column(0)], 2)
    simulate(tmp_path, plan, 3)
    for drawn in draw(load_plan(tmp_path), "last"):
        png, svg = save(drawn.figure)
        image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert image.std() > 5
        assert svg.rstrip().endswith(b"</svg>")
