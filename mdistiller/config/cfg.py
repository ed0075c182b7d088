"""The run's configuration: ``CFG`` holds every key with its default.

>>> cfg = CFG.clone()
>>> cfg.merge_from_list(["KD.TEMPERATURE", "2.5"])
>>> cfg.KD.TEMPERATURE
2.5
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdistiller.console import say
from mdistiller.shipped import find

from .defaults import default_tree
from .node import Config

CFG: Config = default_tree(Config)

_ALWAYS_SHOWN = ("EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "LOG")
CROSSBATCH_PREFIX = "CROSSBATCH_"

# The nodes that configure the trainer of the same name.
_TRAINER_NODES = (
    *("MULTITASK", "GRADNORM", "UNCERTAINTY", "GRADIENT_COSINE", "DISTILL_DECAY", "REPLAY"),
)

# Keys that say where things lie or how they are called: no change of them changes a number (of
# the teacher and of a file to replay the content counts, not where it lies). The keys of LOG are
# of this kind, too.
PLACES = (
    "EXPERIMENT.PROJECT",
    "EXPERIMENT.NAME",
    "EXPERIMENT.TAG",
    "DATASET.ROOT",
    "DATASET.NUM_WORKERS",
    "DISTILLER.TEACHER_CKPT",
    "REPLAY.FILE",
    "SOLVER.DEVICE",
)


def load_cfg(cfg_file: str | Path, opts: Sequence[Any] = ()) -> Config:
    """The defaults, then ``cfg_file``, then the overrides ``opts`` (KEY, VALUE, ...); frozen.

    Raises:
        ConfigError: see :class:`~mdistiller.config.node.Config`.
    """
    cfg = CFG.clone()
    cfg.merge_from_file(find(cfg_file))
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def used_groups(cfg: Config) -> Config:
    """The groups of ``cfg`` that its run uses."""
    groups = [*_ALWAYS_SHOWN, cfg.DISTILLER.TYPE.removeprefix(CROSSBATCH_PREFIX)]
    if cfg.DISTILLER.TYPE.startswith(CROSSBATCH_PREFIX):
        groups.append("CROSSBATCH")
    groups += [node for node in _TRAINER_NODES if node == cfg.SOLVER.TRAINER.upper()]
    return Config({group: cfg[group].clone() for group in groups if group in cfg})


def dump_cfg(cfg: Config) -> str:
    """:func:`used_groups` as YAML that can be loaded again."""
    return used_groups(cfg).dump()


def show_cfg(cfg: Config) -> None:
    """Print :func:`dump_cfg`."""
    say(f"CONFIG:\n{dump_cfg(cfg)}")


def experiment_name(cfg: Config, opts: list[str] | tuple[str, ...] = ()) -> str:
    """Where a run's folder lies below LOG.PREFIX: ``<project>/<name><overrides>``.

    The name is EXPERIMENT.NAME, or EXPERIMENT.TAG if that is empty. The command line's
    overrides ``opts`` are appended as KEY:VALUE, joined by commas, except those that only say
    where files lie; an EXPERIMENT.NAME among them is the whole name.
    """
    pairs = list(zip(opts[0::2], opts[1::2], strict=True))
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    if not any(key == "EXPERIMENT.NAME" and value for key, value in pairs):
        name += ",".join(
            f"{key}:{value}"
            for key, value in pairs
            if key not in PLACES and not key.startswith("LOG.")
        )
    return f"{cfg.EXPERIMENT.PROJECT}/{name.replace('/', '_')}"
