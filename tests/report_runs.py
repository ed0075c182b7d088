"""Result folders as the runner leaves them, without the trainings, and tables of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mdistiller.experiments.tables import Column
from mdistiller.experiments.tables.layouts import Row
from mdistiller.experiments.tables.pairs import Pair
from mdistiller.report import Results
from mdistiller.report.frame import folder_run, run_frame
from mdistiller.report.results import in_order

PAIRS = (
    *(("resnet101", "resnet50"), ("resnet56", "resnet20"), ("resnet110", "resnet32")),
    *(("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4")),
)
COLUMNS = tuple(
    Column(f"pair{n}", f"{pair[0]} → {pair[1]}", Pair(f"pair{n}", *pair))
    for n, pair in enumerate(PAIRS)
)
METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")
DEVICE = "cpu: x86_64"


def rows_of(*methods: str) -> tuple[Row, ...]:
    """A vanilla row and one with cross-batch weighting for every method."""
    found = []
    for name in methods:
        key = name.lower()
        found.append(Row(key, name, name))
        found.append(Row(f"{key}_crossbatch", f"{name} + ours", name, "crossbatch", key))
    return tuple(found)


def table(
    root: Path, rows: Sequence[Row], columns: Sequence[Column], trials: int, **changed: Any
) -> Results:
    """The folders ``<row>-<column>-t<trial>`` in ``root``; ``changed`` replaces parts."""
    lines = [
        folder_run(root / f"{row.key}-{col.key}-t{trial}")
        | {"row": row.key, "column": col.key, "trial": trial}
        for row in rows
        for col in columns
        for trial in range(trials)
    ]
    printed = {
        (row.key, col.key): round(70 + 2 * c + 0.1 * r, 2)
        for r, row in enumerate(rows)
        for c, col in enumerate(columns)
    }
    names = {"name": "table1", "title": "Table 1: five methods", "dataset": "cifar100"}
    known = names | {"kind": "table", "printed": printed} | changed
    runs = in_order(run_frame(lines), rows, columns)
    return Results(root=root, rows=tuple(rows), columns=tuple(columns), runs=runs, **known)


def write_run(
    folder: Path,
    accuracies: Sequence[float],
    *,
    seed: int,
    seconds: float = 1.0,
    node: tuple[str, list[dict[str, float]]] | None = None,
    config: dict[str, Any] | None = None,
    **changed: Any,
) -> None:
    """A complete run with these test accuracies; ``changed`` replaces entries of result.json.

    Args:
        seconds: of every epoch.
        config: nested settings beside the seed and the name.
        node: the name below which weights are logged, and their means in each epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"EXPERIMENT": {"SEED": seed, "NAME": folder.name}, **(config or {})}
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


def simulate(
    root: Path, rows: Sequence[Row], columns: Sequence[Column], trials: int, epochs: int
) -> None:
    """Complete every run of a table with curves as a schedule with two steps gives them."""
    for row in rows:
        for place, column in enumerate(columns):
            for trial in range(trials):
                folder = root / f"{row.key}-{column.key}-t{trial}"
                # Same seed, same luck: what pairing is for.
                seed = 100 * place + trial
                luck = np.random.RandomState(seed).normal(0, 0.25)
                rng = np.random.RandomState(zlib.crc32(folder.name.encode()))
                top = 70 + 1.3 * place + luck + 0.35 * bool(row.baseline)
                top += METHODS.index(row.method) * 0.3
                write_run(
                    folder,
                    _curve(rng, top, epochs),
                    seed=seed,
                    seconds=8.0 * (1.8 if row.baseline else 1.0),
                    node=_node(rng, row, epochs),
                )


def _curve(rng: np.random.RandomState, top: float, epochs: int) -> list[float]:
    t = np.arange(1, epochs + 1) / epochs
    level = top - 14 * (t < 0.625) - 2 * ((t >= 0.625) & (t < 0.75)) - 50 * np.exp(-t / 0.05)
    noise = rng.normal(0, 1, epochs) * np.where(t < 0.625, 1.5, 0.2)
    return np.clip(np.round(level + noise, 2), 1, 100).tolist()


def _node(rng, row: Row, epochs: int) -> tuple[str, list[dict[str, float]]] | None:
    if not row.baseline:
        return None
    t = np.arange(epochs) / epochs
    noise = rng.normal(0, 0.03, (4, epochs))
    shift = 0.1 * METHODS.index(row.method)
    values = {
        "ce": 0.8 + 0.3 * t + noise[0] + shift,
        "kd": 0.6 - 0.3 * t + noise[0] + shift,
        "c_ce": 0.4 - 0.3 * t + noise[1] - shift / 2,
        "c_kd": 0.3 - 0.1 * t + noise[2] - shift / 2,
        "c_12": 0.6 - 0.4 * t + noise[3] - shift / 2,
        "conflict": np.clip(0.1 + 0.2 * t + noise[3] + shift, 0, 1),
    }
    return row.variant, [{k: float(v[i]) for k, v in values.items()} for i in range(epochs)]


NAMES = ("kd", "kd_crossbatch")


def write_kd(folder: Path) -> Path:
    """Two pairs, KD and its twin, three trials; all complete, last epochs known.

    KD ends at 70 + trial, its twin 0.1, 0.2 or 0.3 above; best epochs are 1 above the last.
    """
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


def kd(root: Path, **changed: Any) -> Results:
    """What :func:`write_kd` wrote."""
    return table(root, rows_of("KD"), COLUMNS[:2], 3, **changed)
