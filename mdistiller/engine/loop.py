"""The one training loop: epochs and steps, what is written after them, how it is stopped."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn

from mdistiller.errors import InterruptedRun

from .epoch import EpochSums
from .meters import validate
from .optim import adjust_learning_rate
from .rundir.folder import open_folder
from .rundir.progress import Progress
from .rundir.records import NoRecord, RunRecord, read_metrics
from .rundir.result import run_result
from .rundir.saving import Checkpoints
from .runtime.signals import StopDuringValidation

if TYPE_CHECKING:
    from .trainer import BaseTrainer

# Steps between two looks at the running sums (a look waits for the device).
READ_EVERY = 20

# Where a training is: an epoch, counted from 1, and how many of its steps are done.
Position = tuple[int, int]


class Loop:
    """Takes a trainer through its epochs, pausing between its steps.

    Args:
        trainer: whose ``batches`` and ``train_iter`` are the steps.
    """

    def __init__(self, trainer: BaseTrainer) -> None:
        self._trainer = trainer
        self._world = trainer.world

    def steps(self, resume: bool, allow_changes: bool) -> Generator[Position, None, dict[str, Any]]:
        """Train; yields the position in front of every epoch and after every step.

        Closing the generator ends the run without saving it.

        Args, returns and raises: see ``BaseTrainer.train``.
        """
        trainer, lock = self._trainer, None
        try:
            with self._world.together():
                if self._world.is_writer:
                    lock = open_folder(trainer.log_path, keep=resume)
            with self._world.together():
                self._checkpoints = Checkpoints(trainer)
                done, sums = self._checkpoints.load(allow_changes) if resume else (0, EpochSums())
            with trainer.stop:
                return (yield from self._epochs(done, sums))
        finally:
            if lock:
                lock.release()

    def _epochs(self, done: int, sums: EpochSums) -> Generator[Position, None, dict[str, Any]]:
        trainer, kind = self._trainer, RunRecord if self._world.is_writer else NoRecord
        last = trainer.cfg.SOLVER.EPOCHS
        with self._world.together():
            self._record = kind(trainer.log_path, trainer.cfg, after_epoch=done)
        self._progress = Progress(last, len(trainer.train_loader), first_epoch=done + 1)
        try:
            for epoch in range(done + 1, last + 1):
                entry = yield from self._epoch(epoch, sums)
                with self._world.together():
                    self._record.epoch(entry, sums.step_weights())
                    self._checkpoints.save_epoch(epoch)
                self._progress.end_epoch(entry)
                sums = EpochSums()
            with self._world.together():
                result = self._result()
                self._record.finish(result)
            return result
        except KeyboardInterrupt:
            raise InterruptedRun(
                f"interrupted twice, so nothing was saved now; {trainer.log_path} has the latest "
                "checkpoint, from which --resume continues"
            ) from None
        finally:
            self._progress.close()
            self._record.close()

    def _epoch(self, epoch: int, sums: EpochSums) -> Generator[Position, None, dict[str, Any]]:
        """The rest of a pass over the training set, and one over the validation set."""
        trainer = self._trainer
        # In front of the pause, in which a fleet may already load the first batch for all.
        began = trainer.clock() - sums.seconds
        yield epoch, sums.steps
        lr = adjust_learning_rate(epoch, trainer.cfg, trainer.optimizer)
        self._progress.start_epoch(epoch, sums.steps, sums.images)
        trainer.distiller.train()
        for batch in trainer.batches(epoch, sums.steps):
            result = trainer.train_iter(batch, epoch)
            # A stand-in for an empty piece of the batch does not count.
            sums.add(result, batch["target"], len(batch["target"]) if trainer.share else 0)
            # The graph of the step must not outlive it: in a pause others train.
            del batch, result
            if sums.steps % READ_EVERY == 0:
                trainer.check_finite(epoch, sums)
                self._progress.step(sums.steps, sums.images, sums.metrics.averages())
            self._write_window(sums, epoch)
            sums.seconds = trainer.clock() - began
            # Here, so that who is asked to stop in the pause does so before another step.
            yield epoch, sums.steps
            self._save_within(epoch, sums)
        # Waits for the device, so that the time is that of all steps.
        trainer.check_finite(epoch, sums)
        sums.seconds = trainer.clock() - began
        return self._entry(epoch, lr, sums, self._validate(epoch, sums))

    def _entry(
        self, epoch: int, lr: float, sums: EpochSums, validated: tuple[float, float, float]
    ) -> dict[str, Any]:
        """The epoch's line of ``metrics.jsonl``; remembers the best epoch."""
        trainer = self._trainer
        top1, top5, loss = validated
        if top1 >= trainer.best_acc:
            trainer.best_acc, trainer.best_epoch = top1, epoch
        entry = {
            "epoch": epoch,
            "lr": lr,
            **sums.metrics.averages(self._world),
            "test_acc": top1,
            "test_acc_top5": top5,
            "test_loss": loss,
            "best_acc": trainer.best_acc,
            "steps": sums.steps,
            "seconds": sums.seconds,
            "images_per_second": sum(self._world.gather(sums.images)) / sums.seconds,
        }
        if trainer.clock.fleet > 1:
            entry["fleet"] = trainer.clock.fleet
        if means := sums.diagnostics.averages():
            entry[trainer.diagnostics_name] = means
        return entry

    def _validate(self, epoch: int, sums: EpochSums) -> tuple[float, float, float]:
        trainer, world = self._trainer, self._world
        if world.size > 1:
            world.assert_agreement(trainer.optimizer.param_groups[0]["params"])
            world.copy_buffers(trainer.distiller)
            return validate(trainer.val_loader, trainer.distiller, world)
        try:
            return validate(trainer.stop.until(trainer.val_loader), trainer.distiller)
        except StopDuringValidation:
            self._stop_here(epoch, sums)

    def _write_window(self, sums: EpochSums, epoch: int) -> None:
        """Every TENSORBOARD_FREQ steps, the diagnostics' means over these steps."""
        trainer = self._trainer
        total = (epoch - 1) * len(trainer.train_loader) + sums.steps
        if total % trainer.cfg.LOG.TENSORBOARD_FREQ:
            return
        means, name = sums.window.averages(), trainer.diagnostics_name
        self._record.scalars({f"{name}/{k}": v for k, v in means.items()}, total)
        sums.window.reset()

    def _save_within(self, epoch: int, sums: EpochSums) -> None:
        """After a step: the checkpoint that is due or that a signal asks for."""
        trainer = self._trainer
        last = sums.steps == len(trainer.train_loader)
        # Asking the other processes takes time, so that is done now and then only.
        if trainer.stop.agreed(self._world, now=last or sums.steps % READ_EVERY == 0):
            self._stop_here(epoch, sums)
        every = trainer.cfg.LOG.SAVE_EVERY_STEPS
        # After its last step an epoch is about to be saved as a whole.
        if every and sums.steps % every == 0 and not last:
            self._checkpoints.save_step(epoch, sums)

    def _stop_here(self, epoch: int, sums: EpochSums) -> NoReturn:
        """Save and end the run, as SIGINT or SIGTERM asks."""
        trainer = self._trainer
        self._checkpoints.save_step(epoch, sums)
        with self._world.together():
            raise trainer.stop.error(epoch, sums.steps, trainer.log_path)

    def _result(self) -> dict[str, Any]:
        trainer = self._trainer
        return run_result(
            trainer.cfg,
            trainer.device,
            name=trainer.experiment_name,
            history=read_metrics(trainer.log_path),
            processes=self._world.size,
            best=(trainer.best_acc, trainer.best_epoch),
            seconds=self._checkpoints.seconds,
            **trainer.facts,
        )
