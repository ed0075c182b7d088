"""What a training's seconds are."""

from __future__ import annotations

import time


class Clock:
    """The wall's seconds.

    Attributes:
        fleet: how many trainings share this process.
    """

    fleet = 1

    def __call__(self) -> float:
        return time.monotonic()
