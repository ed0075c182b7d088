"""TensorBoard scalars, written by the training process itself.

tensorboardX's SummaryWriter writes from a thread: on a full disk that thread dies and the next
flush waits for it for ever. Here the error reaches the caller.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
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
            # The process id, for the name ends in seconds: two files must not be the same.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")

    def add(self, name: str, value: float, step: int) -> None:
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        with appending_to(self._folder):
            self._writer.write_event(event)

    def flush(self) -> None:
        with appending_to(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Flush and close; says nothing on a full disk, which :meth:`flush` has done."""
        with suppress(OSError):
            self._writer.close()
