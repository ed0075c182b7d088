"""Progress on the terminal: a bar where there is one, otherwise a line an epoch, and between."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from mdistiller.console import Seldom, log, steady


class Progress:
    """Shows how a training proceeds.

    Args:
        epochs: the last epoch.
        steps: steps an epoch.
        first_epoch: the epoch that is trained first.
    """

    def __init__(self, epochs: int, steps: int, first_epoch: int = 1) -> None:
        self._epochs, self._steps = epochs, steps
        self._output = steady(sys.stdout)
        self._start = time.monotonic()
        self._first = first_epoch
        self._images_before = 0
        self._bar: tqdm | None = None
        self._seldom = Seldom()
        self._epoch = first_epoch

    def start_epoch(self, epoch: int, steps: int = 0, images: int = 0) -> None:
        """Begin ``epoch``, of which ``steps`` and ``images`` were done before a resume."""
        self._images_before, self._epoch = images, epoch
        self._seldom.restart()
        if self._output.isatty():
            self._bar = tqdm(
                total=self._steps,
                initial=steps,
                desc=f"epoch {epoch}/{self._epochs}",
                leave=False,
                file=self._output,
                dynamic_ncols=True,
            )

    def step(self, done: int, images: int, means: dict[str, float]) -> None:
        """After ``done`` steps and ``images`` images of this epoch; ``means`` over them."""
        if self._bar is None:
            if self._seldom.due():
                log(
                    f"epoch {self._epoch}/{self._epochs}, step {done}/{self._steps}  "
                    f"loss {means['train_loss']:.4f}  train {means['train_acc']:.2f}",
                    "TRAIN",
                )
            return
        speed = (images - self._images_before) / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"loss {means['train_loss']:.4f}, top-1 {means['train_acc']:.2f}, {speed:.0f} images/s",
            refresh=False,
        )
        self._bar.update(done - self._bar.n)

    def end_epoch(self, entry: dict) -> None:
        """Close the bar and print the epoch's line, ``entry`` being that of metrics.jsonl."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        epoch = entry["epoch"]
        spent = time.monotonic() - self._start
        left = spent / (epoch - self._first + 1) * (self._epochs - epoch)
        line = (
            f"epoch {epoch}/{self._epochs}  lr {entry['lr']:.6g}  "
            f"loss {entry['train_loss']:.4f}  train {entry['train_acc']:.2f}  "
            f"test {entry['test_acc']:.2f} (best {entry['best_acc']:.2f})  "
            f"{entry['images_per_second']:.0f} images/s  ETA {_duration(left)}"
        )
        log(line, "TRAIN")

    def close(self) -> None:
        """Remove an unfinished bar, so that what is printed next begins a line."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
