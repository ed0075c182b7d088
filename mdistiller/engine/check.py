"""What a configuration must satisfy before anything is loaded or trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from mdistiller.config.cfg import CROSSBATCH_PREFIX
from mdistiller.dataset import NOISE_KINDS, dataset_dict, validates_on_heldout
from mdistiller.device import resolve_device
from mdistiller.distillers import CrossBatchDistiller, distiller_dict
from mdistiller.errors import ConfigError
from mdistiller.models import model_dict_for

from . import trainer_dict
from .optim import optimizer_dict
from .runtime.precision import check_amp, check_compile
from .teacher import FAULTS
from .trainers.balancing import build_schedule
from .trainers.crossbatch import REFERENCES, THETAS, CrossBatchTrainer, build_weighting
from .trainers.multitask import build_aggregator
from .trainers.replay import read_weights

SCHEDULES = ("step", "cosine")

_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda v: v > 0, "greater than 0")
_NOT_NEGATIVE: _Rule = (lambda v: v >= 0, "0 or greater")
_AT_LEAST_ONE: _Rule = (lambda v: v >= 1, "1 or greater")
_BELOW_ONE: _Rule = (lambda v: 0 <= v < 1, "in [0, 1)")

_RANGES: dict[str, _Rule] = {
    "EXPERIMENT.SEED": _NOT_NEGATIVE,
    "DATASET.NUM_WORKERS": _NOT_NEGATIVE,
    "DATASET.TEST.BATCH_SIZE": _AT_LEAST_ONE,
    "DATASET.SUBSET": _NOT_NEGATIVE,
    "DATASET.SUBSET_SEED": _NOT_NEGATIVE,
    "DATASET.HOLDOUT": _NOT_NEGATIVE,
    "DATASET.LABEL_NOISE": _BELOW_ONE,
    "SOLVER.BATCH_SIZE": _AT_LEAST_ONE,
    "SOLVER.EPOCHS": _AT_LEAST_ONE,
    "SOLVER.LR": _POSITIVE,
    "SOLVER.LR_DECAY_RATE": _POSITIVE,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.MOMENTUM": _BELOW_ONE,
    "SOLVER.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.LABEL_SMOOTHING": _BELOW_ONE,
    "LOG.TENSORBOARD_FREQ": _AT_LEAST_ONE,
    "LOG.SAVE_CHECKPOINT_FREQ": _AT_LEAST_ONE,
    "LOG.SAVE_EVERY_STEPS": _NOT_NEGATIVE,
    "KD.TEMPERATURE": _POSITIVE,
    "DKD.T": _POSITIVE,
    "AT.P": _POSITIVE,
    "KDSVD.K": _AT_LEAST_ONE,
    "FITNET.HINT_LAYER": _NOT_NEGATIVE,
    "CRD.NCE.K": _AT_LEAST_ONE,
    "CRD.NCE.TEMPERATURE": _POSITIVE,
    "CRD.NCE.MOMENTUM": _BELOW_ONE,
    "CRD.FEAT.DIM": _AT_LEAST_ONE,
    "CROSSBATCH.PERIOD": _AT_LEAST_ONE,
    "CROSSBATCH.BATCH_SIZE": _NOT_NEGATIVE,
    "GRADNORM.ALPHA": _NOT_NEGATIVE,
    "GRADNORM.LR": _POSITIVE,
    "UNCERTAINTY.LR": _POSITIVE,
    "DISTILL_DECAY.CE_FROM": _NOT_NEGATIVE,
    "DISTILL_DECAY.KD_FROM": _POSITIVE,
}


def check_config(cfg: Any) -> None:
    """Refuse values out of range, unknown names and combinations that cannot work.

    Raises:
        ConfigError: names the key, where it was set, what was found and what is valid.
    """
    try:
        _check(cfg)
    except ConfigError as error:
        source = cfg.source_of(str(error).split(maxsplit=1)[0].rstrip(":"))
        if source is None:
            raise
        raise ConfigError(f"{source}: {error}") from None


def _check(cfg: Any) -> None:
    """As :func:`check_config`; every message begins with the key that it is about."""
    for key, value in cfg.leaves().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be finite, not {value}")
        ok, expected = _RANGES.get(key, (lambda v: True, ""))
        if not ok(value):
            raise ConfigError(f"{key} must be {expected}, not {value}")
    _check_names(cfg)
    _check_data(cfg)
    _check_schedule(cfg)
    _check_trainer(cfg)


def _check_names(cfg: Any) -> None:
    _look_up("DATASET.TYPE", dataset_dict, cfg.DATASET.TYPE)
    _look_up("DISTILLER.TYPE", distiller_dict, cfg.DISTILLER.TYPE)
    _look_up("SOLVER.TRAINER", trainer_dict, cfg.SOLVER.TRAINER)
    _look_up("SOLVER.TYPE", optimizer_dict, cfg.SOLVER.TYPE)
    models = model_dict_for(cfg.DATASET.TYPE)
    _look_up("DISTILLER.STUDENT", models, cfg.DISTILLER.STUDENT)
    if cfg.DISTILLER.TYPE != "NONE":
        _look_up("DISTILLER.TEACHER", models, cfg.DISTILLER.TEACHER)
    _one_of("SOLVER.SCHEDULE", cfg.SOLVER.SCHEDULE, SCHEDULES)
    _one_of("DATASET.LABEL_NOISE_KIND", cfg.DATASET.LABEL_NOISE_KIND, NOISE_KINDS)
    _one_of("DISTILLER.TEACHER_FAULT", cfg.DISTILLER.TEACHER_FAULT, FAULTS)
    _one_of("CRD.MODE", cfg.CRD.MODE, ("exact", "relax"))
    _one_of("CROSSBATCH.REFERENCE", cfg.CROSSBATCH.REFERENCE, REFERENCES)
    _one_of("CROSSBATCH.THETA", cfg.CROSSBATCH.THETA, THETAS)
    _one_of("DATASET.VALIDATE", cfg.DATASET.VALIDATE, ("auto", "test"))
    device = resolve_device(cfg.SOLVER.DEVICE)
    check_amp(cfg.SOLVER.AMP, device)
    check_compile(cfg.SOLVER.COMPILE, device)


def _look_up(key: str, registry: dict[str, Any], name: str) -> None:
    try:
        registry[name]
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}, not {value!r}")


def _check_data(cfg: Any) -> None:
    if not cfg.DATASET.TRAIN_ON_HOLDOUT:
        return
    if not cfg.DATASET.HOLDOUT:
        raise ConfigError("DATASET.TRAIN_ON_HOLDOUT needs DATASET.HOLDOUT, which is 0")
    if validates_on_heldout(cfg):
        raise ConfigError(
            "DATASET.TRAIN_ON_HOLDOUT would validate on images that are trained on; "
            "set DATASET.VALIDATE to test"
        )


def _check_schedule(cfg: Any) -> None:
    solver = cfg.SOLVER
    if solver.WARMUP_EPOCHS >= solver.EPOCHS and solver.WARMUP_EPOCHS:
        raise ConfigError(
            f"SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS} leaves nothing of "
            f"SOLVER.EPOCHS {solver.EPOCHS}"
        )
    if solver.NESTEROV and solver.MOMENTUM == 0:
        raise ConfigError("SOLVER.NESTEROV needs SOLVER.MOMENTUM greater than 0")
    stages = list(solver.LR_DECAY_STAGES)
    if stages != sorted(stages) or any(s < 1 for s in stages):
        raise ConfigError(f"SOLVER.LR_DECAY_STAGES must be ascending epochs from 1, not {stages}")
    late = [s for s in stages if s >= solver.EPOCHS]
    if late and solver.SCHEDULE == "step":
        warnings.warn(
            f"SOLVER.LR_DECAY_STAGES {late} lie at or beyond the last epoch "
            f"(SOLVER.EPOCHS {solver.EPOCHS}) and have no effect",
            stacklevel=3,
        )


def _check_trainer(cfg: Any) -> None:
    distiller, trainer = distiller_dict[cfg.DISTILLER.TYPE], trainer_dict[cfg.SOLVER.TRAINER]
    name, chosen = cfg.DISTILLER.TYPE, cfg.SOLVER.TRAINER
    if trainer.needs_distillation_loss and not distiller.distillation_losses:
        raise ConfigError(
            f"SOLVER.TRAINER {chosen} needs a distillation loss, which DISTILLER.TYPE {name} "
            "does not have; choose another DISTILLER.TYPE, or SOLVER.TRAINER base"
        )
    is_crossbatch = issubclass(distiller, CrossBatchDistiller)
    if is_crossbatch and not issubclass(trainer, CrossBatchTrainer):
        raise ConfigError(
            f"DISTILLER.TYPE {name} with SOLVER.TRAINER {chosen} would train without cross-batch "
            f"weighting; use SOLVER.TRAINER crossbatch, or DISTILLER.TYPE "
            f"{name.removeprefix(CROSSBATCH_PREFIX)}"
        )
    if not is_crossbatch and issubclass(trainer, CrossBatchTrainer):
        raise ConfigError(
            f"SOLVER.TRAINER {chosen} needs DISTILLER.TYPE {CROSSBATCH_PREFIX}{name}, not {name}"
        )
    if is_crossbatch:
        build_weighting(cfg)
        if cfg.CROSSBATCH.REFERENCE == "none" and cfg.CROSSBATCH.READING != "printed":
            raise ConfigError(
                "CROSSBATCH.REFERENCE none works only with CROSSBATCH.READING printed, "
                f"not {cfg.CROSSBATCH.READING}, which depends on the reference gradient"
            )
        if cfg.CROSSBATCH.REFERENCE == "holdout" and not cfg.DATASET.HOLDOUT:
            raise ConfigError(
                "CROSSBATCH.REFERENCE holdout needs training images that are held out, but "
                "DATASET.HOLDOUT is 0; set that to their number"
            )
        if cfg.CROSSBATCH.REFERENCE == "holdout" and cfg.DATASET.TRAIN_ON_HOLDOUT:
            raise ConfigError(
                "DATASET.TRAIN_ON_HOLDOUT trains on the images that CROSSBATCH.REFERENCE holdout "
                "keeps from the student; set it to False"
            )
    if chosen == "multitask":
        build_aggregator(cfg)
    if chosen == "distill_decay":
        build_schedule(cfg)
    if chosen == "replay":
        read_weights(cfg.REPLAY.FILE)
