"""A test in a loop can fail, and says on what."""

from __future__ import annotations

import pytest

from .loops import for_each


@pytest.fixture
def bound():
    return 2


@for_each([0, 1], "ab")
def test_a_case_and_a_fixture(number, letter, bound):
    assert (number < bound) and letter == "ab"[number]


def test_every_case_that_fails_is_named():
    @for_each(range(5))
    def odd(number):
        with pytest.raises(ZeroDivisionError):
            1 / (number % 2)

    with pytest.raises(AssertionError, match=r"(?s)1: .*\n3: ") as found:
        odd()
    assert "0: " not in str(found.value)
    with pytest.raises(AssertionError, match="no cases"):
        for_each([])
    with pytest.raises(AssertionError, match="no cases"):
        for_each(list)(print)()
    seen = []
    for_each(lambda: "ab", [1, 2])(lambda letter, number: seen.append((letter, number)))()
    assert seen == [("a", 1), ("b", 2)]
