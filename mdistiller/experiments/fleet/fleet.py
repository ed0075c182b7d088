"""Several trainings side by side in one process: one stream of batches, one teacher, N students.

Each member ends with the bits it would have alone. They take turns, those furthest behind first,
so that members that were stopped at different places fall into step and from there on share
every batch and every answer of the teacher. A member that fails leaves the others alone.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from mdistiller.config import Config, experiment_name, show_cfg
from mdistiller.console import log
from mdistiller.dataset import contrastive_settings
from mdistiller.engine.loop import Loop, Position
from mdistiller.engine.run import SharedInputs, build_trainer, log_result
from mdistiller.engine.runtime.determinism import name_nondeterministic
from mdistiller.engine.runtime.host import use_host
from mdistiller.engine.runtime.signals import StopRequest
from mdistiller.engine.trainers.base import BaseTrainer
from mdistiller.errors import ConfigError, InterruptedRun, MdistillerError
from mdistiller.seeding import derive_seed, global_state, seed_everything, set_global_state

from .clock import MemberClock, SharedTime
from .sharing import Shared

# Beside everything about the data, what decides on batches, on the teacher and on its answers.
_AGREED = (
    *("EXPERIMENT.SEED", "SOLVER.BATCH_SIZE", "SOLVER.DEVICE", "SOLVER.DETERMINISTIC"),
    *("SOLVER.CHANNELS_LAST", "SOLVER.AMP", "SOLVER.FOLD_TEACHER", "SOLVER.COMPILE"),
)
_TEACHER = (
    *("DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT", "DISTILLER.TEACHER_FAULT"),
    *("DISTILLER.TEACHER_MEAN", "DISTILLER.TEACHER_STD", "DISTILLER.TEACHER_SIZE"),
    "DISTILLER.FEATURES.TEACHER",
    "DISTILLER.TEACHER_CACHE",
)
_CONTRAST = ("CRD.MODE", "CRD.NCE.K")


def fleet_settings(cfg: Config) -> dict[str, Any]:
    """What the members of a fleet have in common, by dotted key; None where a run has no such."""
    leaves = cfg.leaves()
    found = {key: value for key, value in leaves.items() if key.startswith("DATASET.")}
    found |= {key: leaves[key] for key in _AGREED}
    has_teacher = cfg.DISTILLER.TYPE != "NONE"
    contrasts = contrastive_settings(cfg) is not None
    found |= {key: leaves[key] if has_teacher else None for key in _TEACHER}
    return found | {key: leaves[key] if contrasts else None for key in _CONTRAST}


def disagreements(settings: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which several :func:`fleet_settings` differ, with the values of each."""
    settings = list(settings)
    columns = {key: [each[key] for each in settings] for key in settings[0]}
    return {key: values for key, values in columns.items() if any(v != values[0] for v in values)}


@dataclass(eq=False)
class Member:
    """One training of a fleet, and what became of it.

    Attributes:
        cfg, resume: as for ``run_training``.
        out: gets everything that is printed about it.
        result: the contents of ``result.json`` once it is done.
        error: why it ended before; an InterruptedRun is saved and can be resumed.
    """

    cfg: Config
    resume: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    result: dict[str, Any] | None = None
    error: BaseException | None = None


class _Running:
    """A member while it trains."""

    def __init__(self, member: Member) -> None:
        self.member, self.clock = member, MemberClock()
        self.trainer: BaseTrainer | None = None
        self.steps: Generator[Position, None, dict[str, Any]] | None = None
        self.position: Position = (0, 0)
        self.random = global_state()

    @property
    def active(self) -> bool:
        return self.member.result is None and self.member.error is None


class Fleet:
    """Trains members side by side.

    Args:
        members: of settings that agree (:func:`fleet_settings`), each with a folder of its own.

    Raises:
        ConfigError: they do not agree, or LOG.WANDB is on.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        _refuse_disagreement(members)
        refuse_wandb(member.cfg for member in members)
        self._time = SharedTime()
        self._running = [_Running(member) for member in members]
        self._inputs = SharedInputs()
        self._shared = Shared(self._time.shared)
        self._stop = StopRequest()

    def train(self, ended: Callable[[Member], None] = lambda member: None) -> None:
        """Train all to their ends, which the members then tell.

        Args:
            ended: called for each member that is done or has failed, as soon as that is known.

        Raises:
            InterruptedRun: SIGINT or SIGTERM came; every member that had begun is saved (after a
                second SIGINT only those that had been saved by then).
        """
        self._ended = ended
        use_host()
        with self._stop:
            try:
                for run in self._running:
                    if not self._stop.signal:
                        self._open(run)
                while here := self._furthest_behind():
                    self._round(here)
            except KeyboardInterrupt:
                pass  # the second one; members in a pause have nothing to say
            finally:
                self._close()
        unfinished = [run for run in self._running if run.active or _is_stopped(run.member)]
        if self._stop.signal and unfinished:
            raise self._interruption()

    def _open(self, run: _Running) -> None:
        """Build a member's training, and take it to where it is to begin or go on."""
        member = run.member
        with self._turn(run):
            show_cfg(member.cfg)
            run.trainer = trainer = build_trainer(member.cfg, self._inputs)
            self._shared.add_streams(trainer)
            seed_everything(derive_seed(member.cfg.EXPERIMENT.SEED, "training"))
            run.steps = Loop(trainer, self._stop, run.clock, len(self._running)).steps(
                member.resume
            )
            self._advance(run)
            # After its checkpoint was loaded, which holds the teacher's weights.
            if run.active and not self._shared.add_teacher(trainer.distiller):
                log("this run's teacher is not the fleet's, or changes in training: it has its own")

    def _furthest_behind(self) -> list[_Running]:
        active = [run for run in self._running if run.active and run.steps is not None]
        first = min((run.position for run in active), default=None)
        return [run for run in active if run.position == first]

    def _round(self, running: list[_Running]) -> None:
        """One step of each."""
        self._time.begin_round([run.clock for run in running])
        for run in running:
            with self._turn(run):
                self._advance(run)
        self._shared.end_round()

    def _advance(self, run: _Running) -> None:
        assert run.steps is not None and run.trainer is not None
        try:
            run.position = next(run.steps)
        except StopIteration as end:
            run.member.result = end.value
            log_result(end.value, run.trainer)

    @contextmanager
    def _turn(self, run: _Running) -> Iterator[None]:
        """Inside, a member trains as if alone: its output, its random numbers, its failures."""
        member = run.member
        with redirect_stdout(member.out), redirect_stderr(member.out), self._time.turn(run.clock):
            set_global_state(run.random)
            try:
                with name_nondeterministic():
                    yield
            except MdistillerError as error:
                print(f"error: {error}", flush=True)
                member.error = error
            except Exception as error:  # any mistake in one member's method
                traceback.print_exc()
                member.error = error
            run.random = global_state()
        if not run.active:
            _make_room(run)
            self._ended(member)
        if self._stop.at_once:
            raise KeyboardInterrupt

    def _close(self) -> None:
        """Release what a second Ctrl-C left open."""
        for run in self._running:
            if run.steps is not None:
                with suppress(Exception):
                    run.steps.close()
                _make_room(run)

    def _interruption(self) -> InterruptedRun:
        saved = sum(_is_stopped(run.member) for run in self._running)
        return InterruptedRun(
            f"stopped by a signal; {saved} of {len(self._running)} trainings are saved at their "
            "step, each says where; the same command continues them",
            128 + (self._stop.signal or 0),
        )


def _is_stopped(member: Member) -> bool:
    return isinstance(member.error, InterruptedRun)


def _make_room(run: _Running) -> None:
    """Let go of a member's networks, which an error's traceback would hold, too."""
    run.trainer = run.steps = None
    if run.member.error is not None:
        run.member.error = run.member.error.with_traceback(None)
        run.member.error.__context__ = None


def refuse_wandb(cfgs: Iterable[Config]) -> None:
    """Raises ConfigError if a configuration has LOG.WANDB on: one process, one run there."""
    if any(cfg.LOG.WANDB for cfg in cfgs):
        raise ConfigError(
            "LOG.WANDB True: a process reports one run to Weights & Biases at a time, so runs that "
            "share a teacher cannot; leave it False, or train them separately"
        )


def _refuse_disagreement(members: Sequence[Member]) -> None:
    differing = disagreements(fleet_settings(member.cfg) for member in members)
    if not differing:
        return
    names = [experiment_name(member.cfg) for member in members]
    key, values = next(iter(differing.items()))
    other = next(n for n, value in enumerate(values) if value != values[0])
    raise ConfigError(
        "trainings in one process share batches and teacher, so they must agree on "
        f"{', '.join(differing)}: {key} is {values[0]!r} in {names[0]} and {values[other]!r} in "
        f"{names[other]}; train them separately"
    )
