"""A run's folder as the report sees it: in which state, and with which figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: a running training cannot be told from a waiting one.
    fcntl = None

STATES = ("done", "running", "failed", "waiting", "broken")

# Below these names a trainer logs its weights and cosines (the trainers' diagnostics_name).
DYNAMICS = (
    *("crossbatch", "multitask", "gradnorm", "uncertainty", "gradient_cosine", "distill_decay"),
    "replay",
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        state: one of :data:`STATES`; "broken" is complete but cannot be believed.
        reason: why it is failed or broken, in one line.
        tail: the last lines of a failed run's log.
        result: result.json of a complete run, else empty.
        history: the epochs of metrics.jsonl; of a run that is not complete those until now.
        system: on which it was recorded; empty of a folder.
    """

    folder: Path
    trial: int
    seed: int | None
    state: str
    reason: str = ""
    tail: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    history: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    system: str = ""

    def accuracy(self, rule: str) -> float:
        """Test top-1 in percent by the selection rule "last" or "best" (epoch)."""
        return self.result[f"{rule}_top1"]

    def curve(self, *keys: str) -> np.ndarray:
        """A value of each epoch [epochs] by its path in the entries; NaN where there is none."""
        return np.array([_get(entry, keys) for entry in self.history], dtype=float)

    @property
    def seconds(self) -> np.ndarray:
        """Training seconds until the end of each epoch [epochs], validation left out."""
        return np.cumsum(self.curve("seconds"))

    @property
    def dynamics(self) -> str | None:
        """Below which name the run logged weights, None where its weights are fixed."""
        last = self.history[-1] if self.history else {}
        return next((n for n in DYNAMICS if isinstance(last.get(n), dict)), None)

    @property
    def fleets(self) -> tuple[int, ...]:
        """How many runs shared its process, teacher and data, in whichever epochs."""
        return tuple(sorted({entry.get("fleet", 1) for entry in self.history}))

    @property
    def machine(self) -> tuple[Any, ...]:
        """What must agree for two times to be comparable: device, threads, shared work, system."""
        device, threads = str(self.result.get("device")), self.result.get("threads")
        return device, threads, self.fleets, self.system


def _get(entry: Any, keys: tuple[str, ...]) -> float:
    for key in keys:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return math.nan if entry is None else entry


def common(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of several trials as [trials, epochs], cut to the shortest."""
    length = min(map(len, curves))
    return np.stack([curve[:length] for curve in curves])


def read_run(root: Path, folder: str, trial: int = 0, seed: int | None = None) -> Run:
    """The run in ``root/folder``; damage makes it "broken", never an exception.

    Args:
        seed: what the plan says; a result of another seed is not believed. None: not checked.
    """
    path = root / folder
    try:
        if (path / "result.json").exists():
            result = _parse((path / "result.json").read_text(), "result.json")
            return complete_run(path, trial, seed, result, tuple(_epochs(path)))
        history = tuple(_epochs(path, until_damage=True))
        if _is_locked(path):
            return Run(path, trial, seed, "running", history=history)
        failure = root / f"{folder}.failed.json"
        if failure.exists():
            return Run(path, trial, seed, "failed", **_failure(failure), history=history)
        return Run(path, trial, seed, "waiting", history=history)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        return Run(path, trial, seed, "broken", f"cannot be read: {reason}")
    except _Damage as error:
        return Run(path, trial, seed, "broken", str(error))


class _Damage(Exception):
    """Why a complete run cannot be believed."""


def complete_run(
    path: Path,
    trial: int,
    seed: int | None,
    result: dict[str, Any],
    history: tuple[dict[str, Any], ...],
    tolerance: float = 1e-6,
) -> Run:
    """A complete run, "broken" if its parts contradict each other.

    Args:
        tolerance: by which accuracies in ``result`` and ``history`` may differ.
    """
    try:
        _check_parts(result, history, seed, tolerance)
    except _Damage as error:
        return Run(path, trial, seed, "broken", str(error))
    return Run(path, trial, seed, "done", result=result, history=history)


def _check_parts(
    result: dict[str, Any], history: tuple[dict[str, Any], ...], seed: int | None, tolerance: float
) -> None:
    for key in ("last_top1", "best_top1", "seconds", "epochs"):
        _check_number(result, key, "result.json")
    if [entry["epoch"] for entry in history] != list(range(1, int(result["epochs"]) + 1)):
        raise _Damage(
            f"metrics.jsonl has {len(history)} epochs, result.json says {result['epochs']}"
        )
    last, best = result["last_top1"], result["best_top1"]
    if abs(history[-1]["test_acc"] - last) > tolerance or not 0 <= last <= best <= 100:
        raise _Damage(
            f"accuracies disagree: result.json has {last} (last) and {best} (best), "
            f"metrics.jsonl ends with {history[-1]['test_acc']}"
        )
    if seed is not None and result.get("seed") != seed:
        raise _Damage(f"result.json is of seed {result.get('seed')}, the plan says {seed}")


def _epochs(path: Path, until_damage: bool = False):
    """The entries of metrics.jsonl.

    Args:
        until_damage: stop there: a training that was cut off may leave half a line.
    """
    file = path / "metrics.jsonl"
    if not file.exists():
        if until_damage:
            return
        raise _Damage("metrics.jsonl is missing")
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            entry = _parse(line, f"metrics.jsonl, line {number}")
            for key in ("epoch", "test_acc", "seconds"):
                _check_number(entry, key, f"metrics.jsonl, line {number}")
            yield entry
        except _Damage:
            if until_damage:
                return
            raise


def _parse(text: str, where: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise _Damage(f"{where}: a value is {name}")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise _Damage(f"{where}: damaged JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise _Damage(f"{where}: not a JSON object")
    return value


def _check_number(entry: dict[str, Any], key: str, where: str) -> None:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Damage(f"{where}: {key} is {'missing' if value is None else repr(value)}")


def _failure(path: Path) -> dict[str, Any]:
    try:
        raw = _parse(path.read_text(), path.name)
    except _Damage as error:
        return {"reason": str(error)}
    return failure_of(raw)


def failure_of(raw: dict[str, Any]) -> dict[str, Any]:
    """Reason and tail of a failed :class:`Run` from what the runner has noted."""
    tail = raw.get("tail") or []
    tail = tail.splitlines() if isinstance(tail, str) else tail
    return {
        "reason": f"exit status {raw.get('exit_code')}",
        "tail": tuple(str(line) for line in tail),
    }


def _is_locked(path: Path) -> bool:
    """Whether a process trains in the folder: then its lock cannot be shared.

    The shared lock is given back at once; nothing is written.
    """
    lock = path / ".lock"
    if fcntl is None or not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
