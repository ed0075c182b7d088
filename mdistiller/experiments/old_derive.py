"""Settings of controls, made of the numbers of the run that they are controls of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdistiller.errors import DataError

from .plan import scaled_epochs
from .tables.study import LONGER, TIMES_LONGER

# What a cross-batch trainer logs its means under.
_NODE = "crossbatch"


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        name: for messages.
        cfg: its configuration.
        epochs: entries of metrics.jsonl as they are recorded, so that a run's folder and its
            record give the same digits.
        weights_file: its weights.jsonl, or a copy of it in a folder of the same name.
    """

    name: str
    cfg: Any
    epochs: Sequence[dict[str, Any]]
    weights_file: Path


def derive(how: str, source: Source, cfg: Any) -> tuple[str, ...]:
    """Overrides KEY VALUE ... of a control.

    Args:
        how: one of :data:`WAYS`.
        source: the run that the control is for.
        cfg: the control's configuration without them.

    Raises:
        DataError: the run has not logged what is needed.
    """
    return WAYS[how](source, cfg)


def _scaled_lr(source: Source, cfg: Any) -> tuple[str, ...]:
    """SOLVER.LR times the run's mean step length over that of plain steps at the same places.

    A step is the learning rate times the gradient, momentum left out on both sides.
    """
    update = _mean(source, "norm_update", by_rate=True)
    plain = _mean(source, "norm_sum", by_rate=True)
    if plain <= 0:
        raise DataError(f"{source.name} has only zero gradients; there is no step to compare with")
    return "SOLVER.LR", _number(cfg.SOLVER.LR * update / plain)


def relative_step(epochs: Sequence[dict[str, Any]]) -> float | None:
    """How many times as long as plain steps at the same places those of a run were.

    As in the control "scaled_lr"; None for a run that has not logged what is needed, or whose
    gradients are all zero.
    """
    update, plain = (_mean_of(epochs, key, by_rate=True) for key in ("norm_update", "norm_sum"))
    return update / plain if update is not None and plain else None


def _mean_weights(source: Source, cfg: Any) -> tuple[str, ...]:
    """The method's two loss weights times the means of A and B over the run's steps."""
    method = cfg.DISTILLER.TYPE
    own = cfg[method].LOSS
    (other,) = [key for key in own if key != "CE_WEIGHT"]
    values = {"CE_WEIGHT": _mean(source, "ce"), other: _mean(source, "kd")}
    return tuple(
        text
        for key, factor in values.items()
        for text in (f"{method}.LOSS.{key}", _number(own[key] * factor))
    )


def _shuffled(source: Source, cfg: Any) -> tuple[str, ...]:
    """The weights of the run's steps, in random order."""
    return (
        *("SOLVER.TRAINER", "replay", "REPLAY.SHUFFLE", "True"),
        *("REPLAY.FILE", str(source.weights_file)),
    )


def _longer(source: Source, cfg: Any) -> tuple[str, ...]:
    """A multiple of the run's epochs, its decay stages in proportion."""
    return scaled_epochs(source.cfg, TIMES_LONGER * source.cfg.SOLVER.EPOCHS)


WAYS: dict[str, Callable[[Source, Any], tuple[str, ...]]] = {
    "scaled_lr": _scaled_lr,
    "mean_weights": _mean_weights,
    "shuffled": _shuffled,
    LONGER: _longer,
}


def _mean(source: Source, key: str, by_rate: bool = False) -> float:
    mean = _mean_of(source.epochs, key, by_rate)
    if mean is None:
        raise DataError(
            f"{source.name} has no {_NODE}.{key} in metrics.jsonl, which a control is made of; "
            "move its folder away to have it trained again"
        )
    return mean


def _mean_of(epochs: Sequence[dict[str, Any]], key: str, by_rate: bool = False) -> float | None:
    """Mean over all steps, each counting with its epoch's learning rate if asked for.

    None if an epoch lacks an entry.
    """
    total = weight = 0.0
    for entry in epochs:
        value = (entry.get(_NODE) or {}).get(key)
        rate = entry.get("lr") if by_rate else 1.0
        if value is None or rate is None or "steps" not in entry:
            return None
        share = entry["steps"] * rate
        total, weight = total + share * value, weight + share
    return total / weight if weight else None


def _number(value: float) -> str:
    return format(value, ".6g")
