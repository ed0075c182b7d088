"""Result folders as the runner leaves them, without the trainings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PAIRS = (
    ("resnet101", "resnet50"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("wrn_40_2", "wrn_16_2"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("wrn_40_2", "wrn_40_1"),
)
METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")
DEVICE = "cpu: x86_64"


def column(number: int) -> dict[str, str]:
    teacher, student = PAIRS[number]
    label = f"{teacher} → {student}"
    return {"key": f"pair{number}", "teacher": teacher, "student": student, "label": label}


def rows_of(methods: Sequence[str]) -> list[dict[str, Any]]:
    """A vanilla row and one with cross-batch weighting for every method."""
    found = []
    for name in methods:
        key = name.lower()
        own = {"key": key, "label": name, "method": name, "variant": "vanilla"}
        ours = {**own, "key": f"{key}_crossbatch", "label": f"{name} + ours"}
        found.append({**own, "baseline": None, "x": None})
        found.append({**ours, "variant": "crossbatch", "baseline": key, "x": None})
    return found


def write_plan(
    root: Path,
    rows: list[dict[str, Any]],
    columns: list[dict[str, Any]],
    trials: int,
    *,
    printed: bool = True,
    **changed: Any,
) -> dict[str, Any]:
    """A plan.json of all rows in all columns; ``changed`` replaces entries of the plan."""
    cells = [
        {
            "row": row["key"],
            "column": col["key"],
            "printed": round(70 + 2 * c + 0.1 * r, 2) if printed else None,
            "cfg_file": "configs/digits/kd.yaml",
            "opts": [],
            "runs": [
                {"trial": t, "seed": 100 * c + t, "folder": f"{row['key']}-{col['key']}-t{t}"}
                for t in range(trials)
            ],
        }
        for r, row in enumerate(rows)
        for c, col in enumerate(columns)
    ]
    plan = {
        "table": "table1",
        "title": "Table 1: five methods",
        "dataset": "cifar100",
        "kind": "table",
        "rows": rows,
        "columns": columns,
        "cells": cells,
        "teachers": [],
        **changed,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan))
    return plan


def write_run(
    folder: Path,
    accuracies: Sequence[float],
    *,
    seed: int,
    seconds: float = 1.0,
    node: tuple[str, list[dict[str, float]]] | None = None,
    **changed: Any,
) -> None:
    """A complete run with these test accuracies; ``changed`` replaces entries of result.json.

    Args:
        seconds: of every epoch.
        node: the name below which weights are logged, and their means in each epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"EXPERIMENT": {"SEED": seed, "NAME": folder.name}, "SOLVER": {"LR": 0.05}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines, best = [], (-1.0, 0)
    for epoch, accuracy in enumerate(accuracies, 1):
        best = max(best, (float(accuracy), epoch))
        entry = {
            "epoch": epoch,
            "lr": 0.05,
            "train_acc": accuracy,
            "train_loss": 1.0,
            "test_acc": float(accuracy),
            "test_acc_top5": 99.0,
            "test_loss": 1.0,
            "best_acc": best[0],
            "steps": 10,
            "seconds": seconds,
            "images_per_second": 640.0,
        }
        if node:
            entry[node[0]] = node[1][epoch - 1]
        lines.append(json.dumps(entry) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    result = {
        "name": folder.name,
        "dataset": "cifar100",
        "seed": seed,
        "epochs": len(accuracies),
        "last_top1": float(accuracies[-1]),
        "best_top1": best[0],
        "best_epoch": best[1],
        "seconds": 1.1 * seconds * len(accuracies),
        "device": DEVICE,
        "threads": 1,
        "versions": {"mdistiller": "0.3.0", "python": "3.11.9", "torch": "2.14.1"},
        "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
        "teacher_top1": 75.61,
        **changed,
    }
    (folder / "result.json").write_text(json.dumps(result))


def simulate(root: Path, plan: dict[str, Any], epochs: int) -> None:
    """Complete every run of a plan with curves as a schedule with two steps gives them."""
    rows = {row["key"]: row for row in plan["rows"]}
    for cell in plan["cells"]:
        row, place = rows[cell["row"]], int(cell["column"].removeprefix("pair"))
        for run in cell["runs"]:
            # Same seed, same luck: what pairing is for.
            luck = np.random.RandomState(run["seed"]).normal(0, 0.25)
            rng = np.random.RandomState(zlib.crc32(run["folder"].encode()))
            gain = 0.35 if row["baseline"] else 0.0
            top = 70 + 1.3 * place + luck + gain + METHODS.index(row["method"]) * 0.3
            top += 0 if row["x"] is None else -6 * (row["x"] - 0.4 - 0.05 * place) ** 2
            write_run(
                root / run["folder"],
                _curve(rng, top, epochs),
                seed=run["seed"],
                seconds=8.0 * (1.8 if row["baseline"] else 1.0),
                node=_node(rng, row, epochs),
                dataset=plan["dataset"],
            )


def _curve(rng: np.random.RandomState, top: float, epochs: int) -> list[float]:
    t = np.arange(1, epochs + 1) / epochs
    level = top - 14 * (t < 0.625) - 2 * ((t >= 0.625) & (t < 0.75)) - 50 * np.exp(-t / 0.05)
    noise = rng.normal(0, 1, epochs) * np.where(t < 0.625, 1.5, 0.2)
    return np.clip(np.round(level + noise, 2), 1, 100).tolist()


def _node(rng, row: dict[str, Any], epochs: int) -> tuple[str, list[dict[str, float]]] | None:
    if not row["baseline"]:
        return None
    t = np.arange(epochs) / epochs
    noise = rng.normal(0, 0.03, (4, epochs))
    shift = 0.1 * METHODS.index(row["method"])
    values = {
        "ce": 0.8 + 0.3 * t + noise[0] + shift,
        "kd": 0.6 - 0.3 * t + noise[0] + shift,
        "c_ce": 0.4 - 0.3 * t + noise[1] - shift / 2,
        "c_kd": 0.3 - 0.1 * t + noise[2] - shift / 2,
        "c_12": 0.6 - 0.4 * t + noise[3] - shift / 2,
        "conflict": np.clip(0.1 + 0.2 * t + noise[3] + shift, 0, 1),
    }
    return row["variant"], [{k: float(v[i]) for k, v in values.items()} for i in range(epochs)]


NAMES = ("kd", "kd_crossbatch")


def write_kd(folder: Path) -> Path:
    """Two pairs, KD and its twin, three trials; all complete, last epochs known.

    KD ends at 70 + trial, its twin 0.1, 0.2 or 0.3 above; best epochs are 1 above the last.
    """
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
