"""What a configuration must satisfy before anything is loaded or trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mdistiller.config import Config
from mdistiller.config.cfg import CROSSBATCH_PREFIX, check_values, naming_sources, resolved
from mdistiller.config.table import TABLE
from mdistiller.dataset import check_network, dataset_dict, validates_on_heldout
from mdistiller.device import resolve_device
from mdistiller.distillers import CrossBatchDistiller, distiller_dict
from mdistiller.errors import ConfigError
from mdistiller.models.foreign import is_foreign

from . import trainer_dict
from .caching.answers import check_cache
from .optim import optimizer_dict
from .runtime.precision import check_amp, check_compile
from .trainers.crossbatch import CrossBatchTrainer


def check_config(cfg: Config) -> None:
    """Refuse values out of range, unknown names and combinations that cannot work.

    Raises:
        ConfigError: names the key, where it was set, what was found and what is valid.
    """
    with naming_sources(cfg):
        _check(resolved(cfg))


def _check(cfg: Config) -> None:
    """As :func:`check_config`; every message begins with the key that it is about."""
    check_values(cfg)
    if not (cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG):
        raise ConfigError("EXPERIMENT.TAG and EXPERIMENT.NAME are both empty; name the run")
    _check_names(cfg)
    device = resolve_device(cfg.SOLVER.DEVICE)
    check_amp(cfg.SOLVER.AMP, device)
    check_compile(cfg.SOLVER.COMPILE, device)
    _check_schedule(cfg)
    _check_pair(cfg)
    distiller_dict[cfg.DISTILLER.TYPE].check(cfg)
    trainer_dict[cfg.SOLVER.TRAINER].check(cfg)
    _check_data(cfg)
    check_cache(cfg)


def _check_names(cfg: Config) -> None:
    _look_up("DATASET.TYPE", dataset_dict, cfg.DATASET.TYPE)
    _look_up("DISTILLER.TYPE", distiller_dict, cfg.DISTILLER.TYPE)
    _look_up("SOLVER.TRAINER", trainer_dict, cfg.SOLVER.TRAINER)
    _look_up("SOLVER.TYPE", optimizer_dict, cfg.SOLVER.TYPE)
    _check_network(cfg, "STUDENT")
    if cfg.DISTILLER.TYPE != "NONE":
        _check_network(cfg, "TEACHER")
        if bool(cfg.DISTILLER.TEACHER_MEAN) != bool(cfg.DISTILLER.TEACHER_STD):
            raise ConfigError("DISTILLER.TEACHER_MEAN and DISTILLER.TEACHER_STD go together")


def _check_network(cfg: Config, role: str) -> None:
    name = cfg.DISTILLER[role]
    try:
        check_network(cfg.DATASET.TYPE, name, cfg.DATASET.IMAGE_SIZE)
    except ConfigError as error:
        raise ConfigError(f"DISTILLER.{role}: {error}") from error.__cause__
    if cfg.DISTILLER.FEATURES[role] and not is_foreign(name):
        raise ConfigError(
            f"DISTILLER.FEATURES.{role} is for networks of others (torchvision:NAME, timm:NAME, "
            f"path/to/file.py:NAME); {name} knows its features, so leave it empty"
        )


def _look_up(key: str, registry: Mapping[str, Any], name: str) -> None:
    try:
        registry[name]
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_data(cfg: Config) -> None:
    data = cfg.DATASET
    fitting = dataset_dict.fitting(data.TYPE)
    for key in ("IMAGE_SIZE", "MEAN", "STD", "AUGMENT"):
        if not fitting.prepared and data[key] != TABLE[f"DATASET.{key}"].default:
            raise ConfigError(
                f"DATASET.{key} has no effect on {data.TYPE}, whose images are prepared in its own "
                "way; leave it out"
            )
    if not data.TRAIN_ON_HOLDOUT:
        return
    if not cfg.DATASET.HOLDOUT:
        raise ConfigError("DATASET.TRAIN_ON_HOLDOUT needs DATASET.HOLDOUT, which is 0")
    if validates_on_heldout(cfg):
        raise ConfigError(
            "DATASET.TRAIN_ON_HOLDOUT would validate on images that are trained on; "
            "set DATASET.VALIDATE to test"
        )


def _check_schedule(cfg: Config) -> None:
    solver = cfg.SOLVER
    if solver.WARMUP_EPOCHS >= solver.EPOCHS and solver.WARMUP_EPOCHS:
        raise ConfigError(
            f"SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS} leaves nothing of "
            f"SOLVER.EPOCHS {solver.EPOCHS}"
        )
    if solver.NESTEROV and solver.MOMENTUM == 0:
        raise ConfigError("SOLVER.NESTEROV needs SOLVER.MOMENTUM greater than 0")
    late = [s for s in solver.LR_DECAY_STAGES if s >= solver.EPOCHS]
    if late and solver.SCHEDULE == "step":
        warnings.warn(
            f"SOLVER.LR_DECAY_STAGES {late} lie at or beyond the last epoch "
            f"(SOLVER.EPOCHS {solver.EPOCHS}) and have no effect",
            stacklevel=3,
        )


def _check_pair(cfg: Config) -> None:
    """Whether trainer and distiller fit each other."""
    name, chosen = cfg.DISTILLER.TYPE, cfg.SOLVER.TRAINER
    distiller, trainer = distiller_dict[name], trainer_dict[chosen]
    if trainer.needs_distillation_loss and not distiller.distillation_losses:
        raise ConfigError(
            f"SOLVER.TRAINER {chosen} needs a distillation loss, which DISTILLER.TYPE {name} "
            "does not have; choose another DISTILLER.TYPE, or SOLVER.TRAINER base"
        )
    if issubclass(distiller, CrossBatchDistiller) and not issubclass(trainer, CrossBatchTrainer):
        raise ConfigError(
            f"DISTILLER.TYPE {name} with SOLVER.TRAINER {chosen} would train without cross-batch "
            f"weighting; use SOLVER.TRAINER crossbatch, or DISTILLER.TYPE "
            f"{name.removeprefix(CROSSBATCH_PREFIX)}"
        )
