"""The names that ``DISTILLER.TYPE`` may take."""

from __future__ import annotations

from typing import Any

from mdistiller.config.cfg import CROSSBATCH_PREFIX
from mdistiller.config.registry import MethodRegistry

from .crossbatch import CrossBatchDistiller


class DistillerRegistry(MethodRegistry):
    """Distillers by name. With a method of two losses comes its cross-batch form.

    Registering MINE registers CROSSBATCH_MINE, too: a class that derives from
    (:class:`~.crossbatch.CrossBatchDistiller`, the method). One that is registered by hand
    under this name takes its place, before or after.
    """

    def __init__(self) -> None:
        super().__init__("distiller", "DISTILLER.TYPE", _node_of)
        self._made: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self._made:
            self._made.remove(name)
            del self[name]
        super().__setitem__(name, value)
        twin = CROSSBATCH_PREFIX + name
        if _has_twin(name, value) and twin not in self:
            super().__setitem__(twin, _make_twin(name, value))
            self._made.add(twin)

    def nodes(self, value: Any) -> list[str]:
        # How samples are contrasted is said in the node CRD, whoever asks for them.
        extra = ["CRD"] if getattr(value, "needs_contrast", False) else []
        return [*dict.fromkeys([*super().nodes(value), *extra])]


def _node_of(name: str) -> str:
    return name.removeprefix(CROSSBATCH_PREFIX)


def _has_twin(name: str, value: Any) -> bool:
    return (
        isinstance(value, type)
        and not name.startswith(CROSSBATCH_PREFIX)
        and not issubclass(value, CrossBatchDistiller)
        and bool(getattr(value, "distillation_losses", ()))
    )


def _make_twin(name: str, method: type) -> type:
    doc = f"{name} with cross-batch weighting of its two losses."
    body = {"__doc__": doc, "__module__": method.__module__}
    return type(f"CrossBatch{method.__name__}", (CrossBatchDistiller, method), body)


distiller_dict = DistillerRegistry()
