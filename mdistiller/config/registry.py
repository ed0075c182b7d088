"""Registries whose entries bring settings of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mdistiller.registry import Registry

from .cfg import CFG
from .setting import Settings
from .table import declare, uses


class MethodRegistry(Registry):
    """A registry of classes that may declare ``settings``.

    A class attribute ``settings`` (keys within the node -> Setting) becomes a node of the
    configuration on registering, and is then written to ``config.yaml`` and compared at resume.
    A subclass without settings of its own uses those of the class that it derives from; one
    with settings uses both nodes.

    Args:
        kind: in words, for messages.
        choice: the key that chooses an entry, e.g. "SOLVER.TRAINER".
        node_of: the node's name from the entry's.
    """

    def __init__(self, kind: str, choice: str, node_of: Callable[[str], str] = str) -> None:
        super().__init__(kind)
        self.choice = choice
        self._node_of = node_of
        self._nodes: dict[Any, str] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.refuse_double(name)
        own: Settings | None = getattr(value, "__dict__", {}).get("settings")
        if own and value not in self._nodes:
            node = self._node_of(name)
            declare(node, own)
            CFG.add_missing()
            self._nodes[value] = node
        uses(self.choice, name, self.nodes(value))
        super().__setitem__(name, value)

    def nodes(self, value: Any) -> list[str]:
        """The nodes with the settings of an entry, its base classes' first."""
        bases = reversed(getattr(value, "__mro__", (value,)))
        return [self._nodes[c] for c in bases if c in self._nodes]
