"""One test over many cases, where each costs less than pytest's own work for a case."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Cases = Iterable[Any] | Callable[[], Iterable[Any]]


def for_each(*cases: Cases) -> Callable[[Callable], Callable]:
    """Call the decorated test with each case in turn; its failure names all that fail, and why.

    Args:
        cases: one iterable for each of the test's first parameters, gone through side by side, or
            a function that gives it once the test runs; what further parameters name are fixtures.
    """

    def rows() -> list[tuple]:
        found = list(zip(*(each() if callable(each) else each for each in cases), strict=True))
        assert found, "a test of no cases cannot fail"
        return found

    known = None if any(map(callable, cases)) else rows()

    def decorate(test: Callable) -> Callable:
        def loop(**fixtures: Any) -> None:
            failed: dict[str, BaseException] = {}
            for row in known or rows():
                try:
                    test(*row, **fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    failed[" ".join(map(str, row))] = error
            if failed:
                text = "\n".join(f"{case}: {error}" for case, error in failed.items())
                raise AssertionError(text) from next(iter(failed.values()))

        signature = inspect.signature(test)
        own = list(signature.parameters.values())[len(cases) :]
        loop.__signature__ = signature.replace(parameters=own)
        loop.__name__, loop.__doc__, loop.__module__ = test.__name__, test.__doc__, test.__module__
        return loop

    return decorate
