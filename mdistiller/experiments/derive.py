"""Settings of controls, made of the numbers of the run that they are controls of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mdistiller.config import Config
from mdistiller.engine.rundir.records import WEIGHTS_FILE
from mdistiller.errors import DataError

from .schema import Record
from .tables.study import LONGER, TIMES_LONGER

# What a cross-batch trainer logs its means under.
_NODE = "crossbatch"


def derive(how: str, source: Record, cfg: Config) -> tuple[str, ...]:
    """Overrides KEY VALUE ... of a control.

    Args:
        how: one of :data:`WAYS`.
        source: of the run that the control is for.
        cfg: the control's configuration without them.

    Raises:
        DataError: the run has not logged what is needed.
    """
    return WAYS[how](source, cfg)


def scaled_epochs(cfg: Config, epochs: int) -> tuple[str, ...]:
    """Overrides for a training of ``epochs``, with the decay stages at the same fractions of it."""
    return _scaled(cfg.SOLVER.EPOCHS, cfg.SOLVER.LR_DECAY_STAGES, epochs)


def _scaled(before: int, stages: Sequence[int], epochs: int) -> tuple[str, ...]:
    moved = {round(stage * epochs / before) for stage in stages}
    kept = sorted(stage for stage in moved if 1 <= stage < epochs)
    return ("SOLVER.EPOCHS", str(epochs), "SOLVER.LR_DECAY_STAGES", str(kept))


def relative_step(epochs: Sequence[dict[str, Any]]) -> float | None:
    """How many times as long as plain steps at the same places those of a run were.

    As in the control "scaled_lr"; None for a run that has not logged what is needed, or whose
    gradients are all zero.
    """
    update, plain = (_mean_of(epochs, key, by_rate=True) for key in ("norm_update", "norm_sum"))
    return update / plain if update is not None and plain else None


def _scaled_lr(source: Record, cfg: Config) -> tuple[str, ...]:
    """SOLVER.LR times the run's mean step length over that of plain steps at the same places.

    A step is the learning rate times the gradient, momentum left out on both sides.
    """
    update = _mean(source, "norm_update", by_rate=True)
    plain = _mean(source, "norm_sum", by_rate=True)
    if plain <= 0:
        raise DataError(f"run {source.id} has only zero gradients; there is no step to scale to")
    return "SOLVER.LR", _number(cfg.SOLVER.LR * update / plain)


def _mean_weights(source: Record, cfg: Config) -> tuple[str, ...]:
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


def _shuffled(source: Record, cfg: Config) -> tuple[str, ...]:
    """The weights of the run's steps, in random order."""
    if not source.weights:
        raise DataError(
            f"the record of run {source.id} has no weights, which a control replays; "
            "remove its line to have it trained again"
        )
    return (
        *("SOLVER.TRAINER", "replay", "REPLAY.SHUFFLE", "True"),
        *("REPLAY.FILE", f"{source.id}/{WEIGHTS_FILE}"),
    )


def _longer(source: Record, cfg: Config) -> tuple[str, ...]:
    """A multiple of the run's epochs, its decay stages in proportion."""
    epochs, stages = (source.config[f"SOLVER.{key}"] for key in ("EPOCHS", "LR_DECAY_STAGES"))
    return _scaled(epochs, stages, TIMES_LONGER * epochs)


WAYS: dict[str, Callable[[Record, Config], tuple[str, ...]]] = {
    "scaled_lr": _scaled_lr,
    "mean_weights": _mean_weights,
    "shuffled": _shuffled,
    LONGER: _longer,
}


def _mean(source: Record, key: str, by_rate: bool = False) -> float:
    mean = _mean_of(source.epochs, key, by_rate)
    if mean is None:
        raise DataError(
            f"the record of run {source.id} has no {_NODE}.{key} in its epochs, which a control "
            "is made of; remove its line to have it trained again"
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
