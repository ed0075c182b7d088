"""Records of earlier versions: ``<table>-<dataset>.jsonl``, a line for each place in a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .schema import TEACHER_FILE, Query, without_places

_TEACHER_ROW = "teacher"


def is_old(line: dict[str, Any]) -> bool:
    return "row" in line and "hash" in line


def as_record(old: dict[str, Any]) -> dict[str, Any]:
    """An old line as a line of ``runs.jsonl``."""
    result, recorded = old.get("result") or {}, old.get("recorded", {})
    machine = {
        **{key: recorded.get(key) for key in ("processors", "system")},
        "threads": result.get("threads"),
        "torch": result.get("versions", {}).get("torch"),
    }
    teacher = {
        "network": result.get("teacher"),
        "file": old["config"].get(TEACHER_FILE),
        "top1": result.get("teacher_top1"),
    }
    kept = ("state", "config", "result", "failure", "epochs", "weights")
    return {
        **{key: old[key] for key in kept if key in old},
        "teacher": {k: v for k, v in teacher.items() if v} if result.get("teacher") else {},
        "machine": {k: v for k, v in machine.items() if v},
        "recorded": {key: recorded[key] for key in ("at", "commit") if recorded.get(key)},
        "table": old.get("same_as", old)["table"],
    }


def queries_of(lines: Iterable[dict[str, Any]]) -> list[Query]:
    """What was asked for so that old lines have the places that they have."""
    calls: dict[tuple, dict[str, set[int]]] = {}
    teachers: dict[tuple, dict[str, str]] = {}
    for old in lines:
        if old["row"] == _TEACHER_ROW:
            continue
        given, epochs = list(old["overrides"]), None
        if "--teacher-epochs" in given:
            at = given.index("--teacher-epochs")
            epochs = int(given[at + 1])
            del given[at : at + 2]
        call = (old["table"], old["dataset"], without_places(given), epochs, old["column"])
        calls.setdefault(call, {}).setdefault(old["row"], set()).add(old["trial"])
        config = old["config"]
        named = {config["DISTILLER.TEACHER"]: config.get(TEACHER_FILE, "")}
        teachers.setdefault(call, {}).update(named)
    return [
        Query(
            *(table, dataset, (column,), rows, trials),
            teacher_epochs=epochs,
            overrides=overrides,
            teachers=teachers[table, dataset, overrides, epochs, column],
        )
        for (table, dataset, overrides, epochs, column), found in calls.items()
        for trials, rows in _by_trials(found)
    ]


def _by_trials(found: dict[str, set[int]]) -> list[tuple[int, tuple[str, ...]]]:
    """Numbers of trials, and the rows that have as many."""
    rows: dict[int, list[str]] = {}
    for row, trials in found.items():
        rows.setdefault(max(trials) + 1, []).append(row)
    return [(trials, tuple(keys)) for trials, keys in rows.items()]
