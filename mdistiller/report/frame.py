"""All runs as one frame, a row a run, from their folders or from their records.

| column | content |
|---|---|
| ``id`` | hash of the settings that the result depends on; empty of a folder that was not asked for |
| ``dataset``, ``distiller``, ``trainer``, ``teacher``, ``student``, ``seed`` | of the configuration |
| ``state``, ``reason`` | one of :data:`STATES`; why it is failed or broken, in one line |
| ``epochs``, ``last_top1``, ``best_top1``, ``best_epoch``, ``seconds``, ``teacher_top1`` | of result.json, NaN of a run that is not done |
| ``median_epoch_seconds`` | of training, validation left out |
| ``device``, ``threads``, ``fleet``, ``system``, ``torch``, ``versions``, ``commit`` | on what and with what |
| ``fleets`` | how many runs shared its process, in whichever epochs |
| ``machine`` | what must agree for two times to be comparable: device, threads, fleets, system |
| ``folder`` | where it is, or would be |
| ``tail`` | the last lines of a failed run's log |
| ``history`` | the entries of metrics.jsonl; of a run that is not complete those until now |
| ``settings`` | every setting by its dotted key |
"""  # noqa: E501

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mdistiller.engine.rundir.folder import is_locked

STATES = ("done", "running", "failed", "waiting", "broken")
# Below these names a trainer logs its weights and cosines (the trainers' diagnostics_name).
DYNAMICS = (
    *("crossbatch", "multitask", "gradnorm", "uncertainty", "gradient_cosine", "distill_decay"),
    "replay",
)
_RESULT = ("epochs", "last_top1", "best_top1", "best_epoch", "seconds", "teacher_top1")
_CONFIG = {
    "dataset": "DATASET.TYPE",
    "distiller": "DISTILLER.TYPE",
    "trainer": "SOLVER.TRAINER",
    "teacher": "DISTILLER.TEACHER",
    "student": "DISTILLER.STUDENT",
    "seed": "EXPERIMENT.SEED",
}
# A record has six digits of each number.
_RECORDED = 1e-3


class Damage(Exception):
    """Why a complete run cannot be believed."""


def run_frame(runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of :func:`folder_run` and :func:`recorded_run` as a frame.

    With the columns ``row``, ``column`` and ``trial``, of which the runs may have values.
    """
    columns = ["row", "column", "trial", *_row("waiting", {})]
    frame = pd.DataFrame(list(runs), columns=columns)
    for key in (*_RESULT, "median_epoch_seconds"):
        frame[key] = pd.to_numeric(frame[key])
    return frame


def curve(history: Sequence[Mapping[str, Any]], *keys: str) -> np.ndarray:
    """A value of each epoch [epochs] by its path in the entries; NaN where there is none."""

    def value(entry: Any) -> float:
        for key in keys:
            entry = entry.get(key) if isinstance(entry, dict) else None
        return math.nan if entry is None else entry

    return np.array([value(entry) for entry in history], dtype=float)


def dynamics_node(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Below which name a run logged its weights; None where its weights are fixed."""
    last = history[-1] if history else {}
    return next((name for name in DYNAMICS if isinstance(last.get(name), dict)), None)


def common(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of several trials as [trials, epochs], cut to the shortest."""
    length = min(map(len, curves))
    return np.stack([curve[:length] for curve in curves])


def _row(state: str, settings: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """A row, of which ``known`` has result, history and whatever else there is."""
    result, history = known.pop("result", {}), tuple(known.pop("history", ()))
    seconds = curve(history, "seconds") if state == "done" else ()
    fleets = tuple(sorted({entry.get("fleet", 1) for entry in history}))
    versions, system = result.get("versions") or {}, known.pop("system", "")
    device, threads = result.get("device"), result.get("threads")
    return {
        "id": known.pop("id", ""),
        **{name: settings.get(key, result.get(name)) for name, key in _CONFIG.items()},
        **{key: result.get(key) for key in _RESULT},
        "median_epoch_seconds": median(map(float, seconds)) if len(seconds) else None,
        "device": device,
        "threads": threads,
        "fleet": result.get("fleet"),
        "fleets": fleets,
        "machine": str((str(device), threads, fleets, system)),
        "system": system,
        "torch": versions.get("torch"),
        "commit": result.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or None,
        "state": state,
        "reason": "",
        "tail": (),
        "folder": Path(),
        **known,
        "history": history,
        "settings": dict(settings),
    }


# ---- from folders ----------------------------------------------------------------------------


def folder_run(path: Path, run_id: str = "") -> dict[str, Any]:
    """The run in a folder, as a row; damage makes it "broken", never an exception."""
    settings: dict[str, Any] = {}
    known: dict[str, Any] = {"folder": path, "id": run_id}
    try:
        settings = _settings(path / "config.yaml")
        if (path / "result.json").exists():
            result = _parse(_read(path / "result.json"), "result.json")
            history = _whole(tuple(_epochs(path)), result)
            check(result, history, settings.get("EXPERIMENT.SEED"))
            missing = sum("test_acc" not in entry for entry in history)
            gone = f"metrics.jsonl lacks epochs 1 to {missing}" if missing else ""
            return _row("done", settings, result=result, history=history, reason=gone, **known)
        history = tuple(_epochs(path, until_damage=True))
        return _row(**_unfinished(path), settings=settings, history=history, **known)
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    except Damage as error:
        reason = str(error)
    return _row("broken", settings, reason=reason, **known)


def _unfinished(path: Path) -> dict[str, Any]:
    failure = path.with_name(f"{path.name}.failed.json")
    if is_locked(path / ".lock"):
        return {"state": "running"}
    if not failure.exists():
        return {"state": "waiting"}
    try:
        return {"state": "failed", **failure_of(_parse(_read(failure), failure.name))}
    except Damage as error:
        return {"state": "failed", "reason": str(error)}


def failure_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Reason and tail of a failed run from what the runner has noted."""
    tail = raw.get("tail") or []
    tail = tail.splitlines() if isinstance(tail, str) else tail
    return {"reason": f"exit status {raw.get('exit_code')}", "tail": tuple(map(str, tail))}


def _settings(path: Path) -> dict[str, Any]:
    """Nested keys as dotted names; nothing where there is no configuration yet."""
    if not path.exists():
        return {}
    try:
        nested = yaml.safe_load(_read(path))
        flat = pd.json_normalize(nested).iloc[0].to_dict()
        return {str(key): value for key, value in flat.items()}
    except (yaml.YAMLError, NotImplementedError, AttributeError, IndexError):
        raise Damage("config.yaml: damaged") from None


def _whole(history: tuple, result: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """With empty entries for a beginning that is missing: resumed from a checkpoint alone."""
    first = history[0]["epoch"] if history else 1
    count = result.get("epochs")
    if first > 1 and [e["epoch"] for e in history][-1] == count == first + len(history) - 1:
        return (*({"epoch": epoch} for epoch in range(1, int(first))), *history)
    return history


def _epochs(path: Path, until_damage: bool = False) -> Iterator[dict[str, Any]]:
    """The entries of metrics.jsonl.

    Args:
        until_damage: stop there: a training that was cut off may leave half a line.
    """
    file = path / "metrics.jsonl"
    if not file.exists():
        if until_damage:
            return
        raise Damage("metrics.jsonl is missing")
    for number, line in enumerate(_read(file).splitlines(), 1):
        try:
            entry = _parse(line, f"metrics.jsonl, line {number}")
            for key in ("epoch", "test_acc", "seconds"):
                _check_number(entry, key, f"metrics.jsonl, line {number}")
            yield entry
        except Damage:
            if until_damage:
                return
            raise


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise Damage(f"{where}: a value is {name}")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise Damage(f"{where}: damaged JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise Damage(f"{where}: not a JSON object")
    return value


# ---- what makes a run broken -----------------------------------------------------------------


def check(
    result: Mapping[str, Any], history: Sequence[Mapping[str, Any]], seed: Any, near: float = 1e-6
) -> None:
    """Raise :class:`Damage` if the parts of a complete run contradict each other.

    Args:
        seed: of the configuration; None: not checked.
        near: by which accuracies in ``result`` and ``history`` may differ.
    """
    for key in ("last_top1", "best_top1", "seconds", "epochs"):
        _check_number(result, key, "result.json")
    if [entry["epoch"] for entry in history] != list(range(1, int(result["epochs"]) + 1)):
        said = f"result.json says {result['epochs']}"
        raise Damage(f"metrics.jsonl has {len(history)} epochs, {said}")
    last, best, end = result["last_top1"], result["best_top1"], history[-1]["test_acc"]
    if abs(end - last) > near or not 0 <= last <= best <= 100:
        raise Damage(
            f"accuracies disagree: result.json has {last} (last) and {best} (best), "
            f"metrics.jsonl ends with {end}"
        )
    if seed is not None and result.get("seed") != seed:
        raise Damage(f"result.json is of seed {result.get('seed')}, its configuration of {seed}")


def _check_number(entry: Mapping[str, Any], key: str, where: str) -> None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Damage(f"{where}: {key} is {'missing' if value is None else repr(value)}")


# ---- from records ----------------------------------------------------------------------------


def recorded_run(record: Any, folder: Path) -> dict[str, Any]:
    """A :class:`~mdistiller.experiments.schema.Record` as a row, as its folder would give it."""
    known = {"id": record.id, "folder": folder, "system": record.machine.get("system", "")}
    if record.state == "failed":
        failure = failure_of(record.failure)
        return _row("failed", record.config, history=record.epochs, **failure, **known)
    try:
        check(record.result, record.epochs, record.seed, _RECORDED)
    except Damage as error:
        return _row("broken", record.config, reason=str(error), **known)
    return _row("done", record.config, result=record.result, history=record.epochs, **known)
