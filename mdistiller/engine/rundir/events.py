"""TensorBoard scalars, written by the training process itself.

tensorboardX's SummaryWriter writes from a thread: on a full disk that thread dies and the next
flush waits for it for ever. Here the error reaches the caller.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from .files import appending_to


class ScalarWriter:
    """Adds scalars to an event file of its own in ``folder``, which is created if missing.

    A resumed run writes the steps since its checkpoint again, with the same values.

    Raises:
        CheckpointError: in every method, if the disk is full or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with appending_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # With the process id, for two runs may start in one second.
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
            self._records = RecordWriter(str(folder / name))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, name: str, value: float, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _write(self, event: Event) -> None:
        with appending_to(self._folder):
            self._records.write(event.SerializeToString())

    def flush(self) -> None:
        with appending_to(self._folder):
            self._records.flush()

    def close(self) -> None:
        """Close the file; silent on a full disk, of which :meth:`flush` has told."""
        with suppress(OSError):
            self._records.close()
