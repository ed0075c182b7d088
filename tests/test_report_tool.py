"""tools/report.py as a user runs it, on runs that the engine really left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import build_model
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training
from mdistiller.report import load_folders
from mdistiller.report.comparison import compare, costs
from mdistiller.report.contents import answer_in_text
from tools.report import main

from .report_runs import NAMES, rows_of, write_kd, write_run

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "report.py"), *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """KD and its twin on digits, an epoch each, beside what else lies in a folder of runs."""
    prefix = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    torch.save({"model": build_model("digits", "convnet12", 10).state_dict()}, prefix / "teacher")
    for name in ("kd", "crossbatch_kd"):
        opts = {
            "SOLVER.EPOCHS": 1,
            "SOLVER.LR_DECAY_STAGES": [],
            "SOLVER.DEVICE": "cpu",
            "DATASET.SUBSET": 128,
            "LOG.PREFIX": prefix,
            "EXPERIMENT.PROJECT": "digits",
            "EXPERIMENT.NAME": name,
            "EXPERIMENT.SEED": 0,
            "DISTILLER.TEACHER": "convnet12",
            "DISTILLER.TEACHER_CKPT": prefix / "teacher",
        }
        flat = [str(x) for item in opts.items() for x in item]
        run_training(load_cfg(str(ROOT / "configs" / "digits" / f"{name}.yaml"), flat))
        (prefix / "digits" / f"{name}.log").write_text("what it printed")
    (prefix / "digits" / "empty").mkdir()
    return prefix / "digits"


def test_runs_of_the_engine_become_a_report(trained):
    """With what makes other programs stumble: logs among the folders, a backend that is not
    there, an encoding without arrows."""
    strange = {"MPLBACKEND": "module://not_there", "PYTHONIOENCODING": "ascii"}
    done = run(*sorted(trained.iterdir()), **strange)
    assert done.returncode == 0, done.stderr.decode()
    page = trained / "report" / "report.html"
    shown = done.stdout.decode("ascii").splitlines()
    assert shown[-2:] == ["2 done, 0 running, 0 failed, 0 waiting, 0 broken", str(page)]
    text = page.read_text(encoding="utf-8")
    for name in ("kd", "crossbatch_kd"):
        result = json.loads((trained / name / "result.json").read_text())
        assert f"{result['last_top1']:.2f} ± – (1)" in text
        assert any(f"{result['last_top1']:.2f}" in line for line in shown)
    assert result["device"] in text
    names = {p.stem for p in page.parent.glob("*.svg")}
    assert names == {"curves", "differences", "weights", "cosines", "equal_time"}
    results = load_folders([trained / "crossbatch_kd", trained / "kd"])
    assert [row.label.split(",")[0] for row in results.rows] == ["CROSSBATCH_KD", "KD"]
    (cost,) = costs(results)
    assert 0 < cost.factor < 1


def test_folders_are_compared_by_what_differs_and_paired_by_seed(tmp_path):
    def network(lr):
        nodes = {"DATASET": {"TYPE": "digits"}, "DISTILLER": {"TYPE": "KD", "STUDENT": "resnet8"}}
        return {**nodes, "SOLVER": {"LR": lr, "EPOCHS": 1}, "LOG": {"PREFIX": str(lr)}}

    for lr, gain in ((0.05, 0.0), (0.1, 0.5)):
        for seed in (7, 3) if lr == 0.1 else (3, 7, 9):
            name = tmp_path / f"lr{lr}-s{seed}"
            write_run(name, [60.0 + seed + gain], seed=seed, config=network(lr))
    results = load_folders([tmp_path])
    assert [row.label for row in results.rows] == ["KD, SOLVER.LR 0.05", "KD, SOLVER.LR 0.1"]
    (found,) = compare(results, results.compared, "last")
    assert found.differences["resnet8, digits"] == pytest.approx([0.5, 0.5])
    assert "KD, SOLVER.LR 0.1" in answer_in_text(results, "last")
    shutil.copytree(tmp_path / "lr0.1-s7", tmp_path / "again")
    again = load_folders([tmp_path, tmp_path / "again"])
    assert len(again.runs) == 5 and again.remarks[0].startswith("left out: 1 runs")


def test_a_table_of_an_earlier_version_is_read_by_its_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = write_kd(tmp_path / "output" / "table1" / "digits")
    part = vars(rows_of("KD")[0]), vars(rows_of("KD")[1])
    runs = {
        name: [{"trial": t, "folder": f"{name}-pair0-t{t}"} for t in range(3)] for name in NAMES
    }
    plan = {
        "table": "table1",
        "title": "Table 1",
        "dataset": "digits",
        "kind": "table",
        "rows": [
            {k: row[k] for k in ("key", "label", "method", "variant", "baseline", "x")}
            for row in part
        ],
        "columns": [{"key": "pair0", "label": "a → b", "teacher": "a", "student": "b"}],
        "cells": [
            {"row": name, "column": "pair0", "printed": None, "runs": own}
            for name, own in runs.items()
        ],
    }
    (root / "plan.json").write_text(json.dumps(plan))
    main(["table1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2].startswith("6 done, ")
    assert any(line.split()[:4] == ["KD", "+", "ours", "KD"] and "+0.20" in line for line in shown)
    (root / "plan.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["table1"])
    assert "plan.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table7",), "no run in table7; give output/<project>/<run>, or the name of a table"),
        (("empty", "a.log"), "no run in empty, a.log"),
        (("compare", "nowhere"), "no run in nowhere"),
        (("table1", "--prefix", "."), "no table1 in . (there: nothing)"),
        (("table1", "--prefix", "damaged"), "line 1: no record of a run (not a JSON object)"),
        (("evidence", "--records", "empty"), "no records in empty"),
    ],
)
def test_bad_input_is_one_line_and_a_status(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.log").write_text("")
    query = '{"table": "table1", "dataset": "digits"}\n'
    (tmp_path / "damaged" / "queries.jsonl").write_text(query)
    (tmp_path / "damaged" / "runs.jsonl").write_text("[1]\n")
    with pytest.raises(SystemExit) as status:
        main(list(arguments))
    assert status.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
