"""Where the time of a cross-batch step goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import _common as common
import torch

from mdistiller.engine.trainers.gradients import GradientRows
from mdistiller.weighting import CrossBatchWeighting, backward

PHASES = ("data", "teacher", "forward", "backward", "weighting", "optimizer")


class Stopwatch:
    """Seconds by phase; a phase that begins within another one interrupts it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.passed: set[str] = set()
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self._pause()
        self._open.append((phase, self.now()))
        try:
            yield
        finally:
            self._pause()
            self._open.pop()
            if self._open:
                self._open[-1] = (self._open[-1][0], self.now())

    def _pause(self) -> None:
        if self._open:
            phase, since = self._open[-1]
            self.seconds[phase] += self.now() - since

    def timed(self, owner: Any, name: str, phase: str) -> Callable[..., Any]:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.passed.add(name)
            with self.during(phase):
                return function(*args, **kwargs)

        return call


def phase_times(step: Any, device: torch.device, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a step by phase, and the rest (losses' bookkeeping, meters).

    "forward" holds both batches' student passes and the losses, "backward" all three gradients.

    Raises:
        RuntimeError: a step does not pass one of the places that are timed.
    """
    now = common.clock(device, args.cpu_time)
    watch = Stopwatch(now)
    trainer = step.trainer
    places = [
        (trainer.distiller, "forward_teacher", "teacher"),
        (trainer.distiller, "forward_train", "forward"),
        (trainer.distiller, "reference_loss", "forward"),
        (GradientRows, "write", "backward"),
        (backward, "gramian", "weighting"),
        (CrossBatchWeighting, "__call__", "weighting"),
        (backward, "combine", "weighting"),
        (GradientRows, "apply", "weighting"),
        (trainer.optimizer, "step", "optimizer"),
    ]
    for _ in range(3):
        step()
    with ExitStack() as patched:
        for owner, name, phase in places:
            timed = watch.timed(owner, name, phase)
            if isinstance(owner, type):
                # A function set on a class binds; this one passes self on.
                timed = _as_method(timed)
            patched.enter_context(mock.patch.object(owner, name, timed))
        plain = step.batches
        step.batches = _timed_batches(plain, watch)
        steps = args.steps * args.repeats
        began = now()
        for _ in range(steps):
            step()
        total = now() - began
        step.batches = plain
    # Or else the time of a function that has moved would be another phase's.
    if missed := {name for _, name, _ in places} - watch.passed:
        raise RuntimeError(f"a cross-batch step does not call {', '.join(sorted(missed))}")
    spent = {phase: s * 1e3 / steps for phase, s in watch.seconds.items()}
    return {**spent, "rest": total * 1e3 / steps - sum(spent.values())}


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return method


def _timed_batches(batches: Iterator[Any], watch: Stopwatch) -> Iterator[Any]:
    while True:
        with watch.during("data"):
            batch = next(batches)
        yield batch
