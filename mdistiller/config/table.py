"""The one table of settings, and which of its nodes a run uses."""

from __future__ import annotations

from collections.abc import Sequence

from .core import CORE
from .setting import Setting, Settings

# Every setting by its dotted key.
TABLE: dict[str, Setting] = {
    f"{group}.{key}": setting
    for group, settings in CORE.items()
    for key, setting in settings.items()
}

# The keys by which a configuration chooses what is registered under a name.
CHOICES = ("DATASET.TYPE", "DISTILLER.TYPE", "SOLVER.TRAINER")

# (choice, name) -> the nodes with its settings.
_NODES: dict[tuple[str, str], tuple[str, ...]] = {}


def declare(node: str, settings: Settings) -> None:
    """Add the ``settings`` of a method as the node ``node`` of the configuration.

    Raises:
        ValueError: there is such a node with other settings.
    """
    new = {f"{node}.{key}": setting for key, setting in settings.items()}
    there = {key: setting for key, setting in TABLE.items() if key.startswith(f"{node}.")}
    if there and there != new:
        raise ValueError(f"the configuration has a node {node} with other settings already")
    TABLE.update(new)


def uses(choice: str, name: str, nodes: Sequence[str]) -> None:
    """Note that a run whose key ``choice`` is ``name`` depends on the settings in ``nodes``."""
    _NODES[choice, name] = tuple(nodes)


def nodes_of(choice: str, name: str) -> tuple[str, ...] | None:
    """The nodes that :func:`uses` noted; None if nothing is registered under that name."""
    return _NODES.get((choice, name))
