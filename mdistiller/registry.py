"""One registry behind the public dictionaries of models, distillers, data sets, trainers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from .errors import UnknownNameError


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that resembles ``name`` most, case ignored; None if none does."""
    by_folded = {c.casefold(): c for c in candidates}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[found[0]] if found else None


class Registry(dict):
    """A dictionary that explains an unknown name and refuses a second registration.

    Args:
        kind: what is registered, in words for the error message ("distiller", "model").
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> Any:
        guess = nearest(str(name), self)
        hint = f"did you mean {guess!r}? " if guess else ""
        raise UnknownNameError(
            f"unknown {self.kind} {name!r}; {hint}valid names: {', '.join(self) or 'none'}"
        )

    def __setitem__(self, name: str, value: Any) -> None:
        self.refuse_double(name)
        super().__setitem__(name, value)

    def refuse_double(self, name: str) -> None:
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered already, as {self[name]!r}")

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def register(self, *names: str) -> Callable[[Any], Any]:
        """Decorator that registers a class or function under one or more names.

        Without a name, the object's own name is used.
        """

        def add(obj: Any) -> Any:
            for name in names or (obj.__name__,):
                self[name] = obj
            return obj

        return add
