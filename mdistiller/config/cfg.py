"""The run's configuration: ``CFG`` holds every key with its default.

Examples:
    >>> cfg = CFG.clone()
    >>> cfg.merge_from_list(["SOLVER.LR", "0.1"])
    >>> cfg.SOLVER.LR
    0.1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdistiller.console import log
from mdistiller.errors import ConfigError
from mdistiller.shipped import find

from .core import CORE
from .node import Config
from .table import CHOICES, TABLE, nodes_of

# The nodes of methods join when the rooms above register them (import mdistiller.engine).
CFG = Config()
CFG.add_missing()

CROSSBATCH_PREFIX = "CROSSBATCH_"


def read_cfg(cfg_file: str | Path, opts: Sequence[Any] = ()) -> Config:
    """The defaults, then ``cfg_file``, then the overrides ``opts`` (KEY, VALUE, ...).

    Raises:
        ConfigError: see :class:`~mdistiller.config.node.Config`.
    """
    cfg = CFG.clone()
    cfg.merge_from_file(find(cfg_file))
    cfg.merge_from_list(list(opts))
    return resolved(cfg)


def resolved(cfg: Config) -> Config:
    """``cfg`` with the one spelling of a configuration that has two.

    A cross-batch trainer (one that uses the node CROSSBATCH) trains the cross-batch form of a
    method: DISTILLER.TYPE KD is then CROSSBATCH_KD.
    """
    twin = CROSSBATCH_PREFIX + cfg.DISTILLER.TYPE
    crossbatch = "CROSSBATCH" in (nodes_of("SOLVER.TRAINER", cfg.SOLVER.TRAINER) or ())
    if not crossbatch or nodes_of("DISTILLER.TYPE", twin) is None:
        return cfg
    other = cfg.clone()
    other.put("DISTILLER.TYPE", twin)
    return other


@contextmanager
def naming_sources(cfg: Config) -> Iterator[None]:
    """Inside, a ConfigError whose message begins with a key says first where that was set."""
    try:
        yield
    except ConfigError as error:
        source = cfg.source_of(str(error).split(maxsplit=1)[0].rstrip(":"))
        if source is None:
            raise
        raise ConfigError(f"{source}: {error}") from None


def check_values(cfg: Config, group: str = "") -> None:
    """Refuse values that are not finite or break the rule of their setting.

    Args:
        group: only those whose key begins so.

    Raises:
        ConfigError: begins with the key.
    """
    for key, value in cfg.leaves().items():
        if not key.startswith(group):
            continue
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
            raise ConfigError(f"{key} must be finite, not {value}")
        rule = TABLE[key].rule
        if rule is not None and not rule.holds(value):
            raise ConfigError(f"{key} must be {rule.words}, not {value!r}")


def used_groups(cfg: Config) -> Config:
    """The groups of ``cfg`` that its run uses: the core's and those of what it chooses.

    The groups themselves, not copies, which would take a run longer than what is done with them.
    """
    leaves = cfg.leaves()
    nodes = [node for choice in CHOICES for node in nodes_of(choice, leaves[choice]) or ()]
    groups = dict.fromkeys([*CORE, *nodes])
    found = Config()
    for group in groups:
        found.put(group, cfg[group])
    return found


def dump_cfg(cfg: Config) -> str:
    """:func:`used_groups` as YAML that can be loaded again."""
    return used_groups(cfg).dump()


def show_cfg(cfg: Config) -> None:
    """Print :func:`dump_cfg`."""
    log(f"CONFIG:\n{dump_cfg(cfg)}")
