"""The one training loop: epochs and steps, what is written after them, how it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from mdistiller.errors import CheckpointError, InterruptedRun, explained

from .batch import Trainable
from .epoch import EpochState
from .meters import validate
from .optim import adjust_learning_rate
from .rundir.checkpoint import Checkpoints
from .rundir.folder import open_folder
from .rundir.progress import Progress
from .rundir.records import NoRecord, RunRecord, read_metrics
from .rundir.result import run_result
from .runtime.precision import uses_bf16
from .runtime.signals import StopDuringValidation, StopRequest

# Steps between two looks at the running sums (a look waits for the device).
READ_EVERY = 20

# Where a training is: an epoch, counted from 1, and how many of its steps are done.
Position = tuple[int, int]


class Loop:
    """Takes a trainer through its epochs, pausing between its steps.

    Args:
        trainer: whose ``batches`` and ``step`` are the steps.
        stop: the signals that end the run; a fleet's members have one together.
        clock: tells the seconds that the run takes.
        fleet: how many trainings share this process.
    """

    def __init__(
        self,
        trainer: Trainable,
        stop: StopRequest | None = None,
        clock: Callable[[], float] = time.monotonic,
        fleet: int = 1,
    ) -> None:
        self._trainer = trainer
        self._world = trainer.world
        self._stop = stop or StopRequest()
        self._clock, self._fleet = clock, fleet

    def train(self, resume: bool = False, allow_changes: bool = False) -> dict[str, Any]:
        """Train up to ``cfg.SOLVER.EPOCHS`` and return what ``result.json`` says.

        Args:
            resume: continue the run in the trainer's ``log_path`` from its latest checkpoint, if
                it has one. Otherwise a run found there is set aside, under the same name with a
                number.
            allow_changes: resume although the configuration is not the checkpoint's.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
            CheckpointError: a damaged file, one of another run, or a disk that is full.
            ConfigError: the configuration is not that of the checkpoint.
            InterruptedRun: stopped by a signal; ``log_path`` holds the last step.
        """
        steps = self.steps(resume, allow_changes)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def steps(
        self, resume: bool = False, allow_changes: bool = False
    ) -> Generator[Position, None, dict[str, Any]]:
        """:meth:`train` one step at a time; yields the position before every epoch and after
        every step.

        Closing the generator ends the run without saving it.
        """
        with self._opened(resume, allow_changes) as (done, state):
            for epoch in range(done + 1, self._trainer.cfg.SOLVER.EPOCHS + 1):
                entry = yield from self._epoch(epoch, state)
                with self._world.fail_together():
                    self._record.epoch(entry, state.step_weights())
                    self._checkpoints.save_epoch(entry, state.window)
                self._progress.end_epoch(entry)
                state = EpochState(state.window)
            result = self._world.from_writer(self._result)
            with self._world.fail_together():
                self._record.finish(result)
            return result

    @contextmanager
    def _opened(self, resume: bool, allow_changes: bool) -> Iterator[tuple[int, EpochState]]:
        """Inside, the run's folder and the signals are this training's.

        Gives the number of complete epochs and what is done of the next one.
        """
        trainer, kind = self._trainer, RunRecord if self._world.is_writer else NoRecord
        with ExitStack() as opened:
            with self._world.fail_together():
                if self._world.is_writer:
                    opened.callback(open_folder(trainer.log_path, keep=resume).release)
            with self._world.fail_together():
                self._checkpoints = Checkpoints(trainer, self._clock)
                done, state = 0, EpochState()
                if resume:
                    done, state = self._checkpoints.load(allow_changes)
            opened.enter_context(self._stop)
            with self._world.fail_together():
                self._record = kind(trainer.log_path, trainer.cfg, done, self._checkpoints.entry)
            opened.callback(self._record.close)
            self._length = len(trainer.train_loader)
            self._progress = Progress(trainer.cfg.SOLVER.EPOCHS, self._length, first_epoch=done + 1)
            opened.callback(self._progress.close)
            try:
                yield done, state
            except KeyboardInterrupt:
                raise InterruptedRun(
                    f"interrupted twice, so nothing was saved now; {trainer.log_path} has the "
                    "latest checkpoint, from which --resume continues"
                ) from None

    def _epoch(self, epoch: int, state: EpochState) -> Generator[Position, None, dict[str, Any]]:
        """The rest of a pass over the training set, and one over the validation set."""
        trainer = self._trainer
        log, first = trainer.cfg.LOG, (epoch - 1) * self._length
        keep_weights, frequency = log.WEIGHTS, log.TENSORBOARD_FREQ
        # In front of the pause, in which a fleet may already load the first batch for all.
        began = self._clock() - state.seconds
        yield epoch, state.steps
        lr = adjust_learning_rate(epoch, trainer.cfg, trainer.optimizer)
        self._progress.start_epoch(epoch, state.steps, state.images)
        trainer.distiller.train()
        batches, whole = trainer.batches(epoch, state.steps), True
        try:
            for batch in batches:
                whole = False
                result = trainer.step(batch, epoch)
                state.add(result, batch, keep_weights)
                # The graph of the step must not outlive it: in a pause others train.
                del batch, result
                whole = True
                if state.steps % READ_EVERY == 0:
                    self._check_finite(epoch, state)
                    self._progress.step(state.steps, state.images, state.metrics.averages())
                if (first + state.steps) % frequency == 0:
                    self._write_window(first + state.steps, state)
                state.seconds = self._clock() - began
                # Here, so that a run asked to stop in the pause does so before another step.
                yield epoch, state.steps
                self._save_within(epoch, state)
            # Waits for the device, so that the time is that of all steps.
            self._check_finite(epoch, state)
            state.seconds = self._clock() - began
            validated = self._validate(epoch, state)
        except Exception as error:
            raise self._failure(error, epoch, state if whole else None) from None
        finally:
            if hasattr(batches, "close"):
                batches.close()
        return self._entry(epoch, lr, state, validated)

    def _failure(self, error: Exception, epoch: int, state: EpochState | None) -> Exception:
        """What to raise for ``error``: one line where it is known what to do.

        Args:
            state: what is done of the epoch, if every step of it is whole; it is saved where data
                or processes that read them have failed.
        """
        found = explained(error)
        if found is None:
            return error
        if self._world.size > 1:
            # To save the step, the others would have to be asked before every exchange.
            return type(found)(
                f"{found}; the same command with --resume continues from the latest checkpoint "
                "(LOG.SAVE_EVERY_STEPS makes one within an epoch)"
            )
        if state is None or not state.steps:
            return found
        self._save_step(epoch, state)
        return type(found)(
            f"{found}; epoch {epoch} is saved after its step {state.steps}, from where the same "
            "command with --resume continues"
        )

    def _entry(
        self, epoch: int, lr: float, state: EpochState, validated: tuple[float, float, float]
    ) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``."""
        top1, top5, loss = validated
        entry = {
            "epoch": epoch,
            "lr": lr,
            **state.metrics.averages(self._world),
            "test_acc": top1,
            "test_acc_top5": top5,
            "test_loss": loss,
            "best_acc": self._checkpoints.compare(epoch, top1),
            "steps": state.steps,
            "seconds": state.seconds,
            "images_per_second": sum(self._world.gather(state.images)) / state.seconds,
        }
        if self._fleet > 1:
            entry["fleet"] = self._fleet
        if means := state.diagnostics.averages():
            entry[self._trainer.diagnostics_name] = means
        return entry

    def _validate(self, epoch: int, state: EpochState) -> tuple[float, float, float]:
        trainer, world = self._trainer, self._world
        if world.size > 1:
            world.assert_agreement(trainer.optimizer.param_groups[0]["params"])
            world.copy_buffers(trainer.distiller)
            return validate(trainer.val_loader, trainer.distiller, world)
        try:
            return validate(self._stop.until(trainer.val_loader), trainer.distiller)
        except StopDuringValidation:
            self._stop_here(epoch, state)

    def _check_finite(self, epoch: int, state: EpochState) -> None:
        """Raises NonFiniteError, in every process, if something was not finite in one."""
        with self._world.fail_together():
            state.finite.check(epoch, self._trainer.log_path / "latest")

    def _write_window(self, step: int, state: EpochState) -> None:
        """The diagnostics' means over the last TENSORBOARD_FREQ steps, at ``step`` of the run."""
        means, name = state.window.averages(), self._trainer.diagnostics_name
        self._record.scalars({f"{name}/{k}": v for k, v in means.items()}, step)
        state.window.reset()

    def _save_within(self, epoch: int, state: EpochState) -> None:
        """After a step: the checkpoint that is due or that a signal asks for."""
        last = state.steps == self._length
        # Asking the other processes takes time, so that is done now and then only.
        if self._world.size > 1 and (last or state.steps % READ_EVERY == 0):
            self._stop.agree(self._world)
        if self._stop.signal and (self._world.size == 1 or last or state.steps % READ_EVERY == 0):
            self._stop_here(epoch, state)
        every = self._trainer.cfg.LOG.SAVE_EVERY_STEPS
        # After its last step an epoch is about to be saved as a whole.
        if every and state.steps % every == 0 and not last:
            self._save_step(epoch, state)

    def _save_step(self, epoch: int, state: EpochState) -> None:
        # What is not finite never becomes the checkpoint.
        self._check_finite(epoch, state)
        self._checkpoints.save_step(epoch, state)

    def _stop_here(self, epoch: int, state: EpochState) -> NoReturn:
        """Save and end the run, as a signal asks."""
        self._save_step(epoch, state)
        with self._world.fail_together():
            raise self._stop.error(epoch, state.steps, self._trainer.log_path)

    def _result(self) -> dict[str, Any]:
        trainer = self._trainer
        history = read_metrics(trainer.log_path)
        if not history:
            raise CheckpointError(
                f"{trainer.log_path} has trained all its epochs, but nothing there says what "
                "came out; evaluate its student_latest with tools/eval.py"
            )
        return run_result(
            trainer.cfg,
            trainer.device,
            name=trainer.experiment_name,
            history=history,
            processes=self._world.size,
            amp="bf16" if uses_bf16(trainer.cfg.SOLVER.AMP, trainer.device) else "off",
            best=self._checkpoints.best,
            seconds=self._checkpoints.seconds,
            student_parameters=sum(p.numel() for p in trainer.distiller.student.parameters()),
            **trainer.extra_results,
        )
