"""A member's part of the seconds that its fleet takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class MemberClock:
    """Runs during its owner's turns only."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.since: float | None = None

    def __call__(self) -> float:
        running = 0.0 if self.since is None else time.monotonic() - self.since
        return self.spent + running


class SharedTime:
    """Divides the seconds of one process among trainings that take turns.

    Each pays for its own turns; what is done for all counts in equal parts for those of the
    current round. Together they pay for the whole time of all turns.
    """

    def __init__(self) -> None:
        self._active: MemberClock | None = None
        self._round: Sequence[MemberClock] = ()

    def begin_round(self, clocks: Sequence[MemberClock]) -> None:
        """From here on, what is shared is shared among these."""
        self._round = clocks

    @contextmanager
    def turn(self, clock: MemberClock) -> Iterator[None]:
        """Inside, time is that of ``clock``'s owner."""
        self._active, clock.since = clock, time.monotonic()
        try:
            yield
        finally:
            clock.spent, clock.since, self._active = clock(), None, None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, within a turn, time is that of the whole round."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            if self._active is not None and self._active.since is not None:
                self._active.since += took
            for clock in self._round:
                clock.spent += took / len(self._round)
