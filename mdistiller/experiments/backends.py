"""Trains jobs in processes on this machine, one per device or a number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import mdistiller
from mdistiller.device import usable_cores

from .job import Job
from .watch import HANG_MINUTES, Watch

PARENT = "PARENT"

# After this time a process that was asked to stop is killed; one step must fit in.
_GRACE_SECONDS = 60.0


@dataclass
class Slot:
    """Room for one process at a time, and the environment that it gets."""

    environment: dict[str, str]
    jobs: Sequence[Job] = ()
    process: subprocess.Popen | None = None
    watch: Watch | None = None


class LocalBackend:
    """Processes on this machine, see :class:`~.runner.Backend`.

    Args:
        slots: environments; as many processes run at a time.
        hang_minutes: of silence after which a process is killed (:mod:`~.watch`); 0: never.
    """

    def __init__(self, slots: list[dict[str, str]], hang_minutes: float = HANG_MINUTES) -> None:
        self._hang_minutes = hang_minutes
        self._slots = [Slot(environment) for environment in slots]

    @property
    def size(self) -> int:
        return len(self._slots)

    def has_room(self) -> bool:
        return any(slot.process is None for slot in self._slots)

    def start(self, jobs: Sequence[Job]) -> None:
        slot = next(slot for slot in self._slots if slot.process is None)
        begin_logs(jobs)
        with jobs[0].log.open("a") as log:
            slot.process = subprocess.Popen(
                [sys.executable, *(str(os.getpid()) if w == PARENT else w for w in command(jobs))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=slot.environment,
                # Ctrl-C goes to this process alone, which then stops the others in order.
                start_new_session=True,
            )
        slot.jobs, slot.watch = jobs, Watch(signs_of_life(jobs), self._hang_minutes)

    def finished(self) -> list[tuple[Job, int]]:
        ended = []
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is not None:
                ended += [(job, slot.process.returncode) for job in slot.jobs]
                slot.process = None
            elif slot.process is not None and slot.watch and slot.watch.is_silent():
                slot.watch.end(slot.process)
        return ended

    def stop(self) -> None:
        """Ask all processes to stop and wait for them."""
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        try:
            for process in processes:
                process.wait(_GRACE_SECONDS)
        finally:
            # Reached early by a second Ctrl-C.
            for process in processes:
                process.kill()
                process.wait()


def command(jobs: Sequence[Job]) -> list[str]:
    """Of the process that trains ``jobs`` (:mod:`~.worker`), without the interpreter.

    Who starts it puts its own process id where PARENT stands.
    """
    members = [json.dumps([job.id, job.cfg_file, str(job.folder), *job.opts]) for job in jobs]
    return ["-m", "mdistiller.experiments.worker", PARENT, *members]


def signs_of_life(jobs: Sequence[Job]) -> list[str]:
    """What a process that trains ``jobs`` changes; first the log that it prints to."""
    return [*(str(job.log) for job in jobs), *(str(job.folder) for job in jobs)]


def begin_logs(jobs: Sequence[Job]) -> None:
    """Begin the part of a process in the logs of its jobs; it prints to the first one's."""
    for job in jobs:
        with job.open_log() as log:
            if job != jobs[0]:
                log.write(f"in one process with {jobs[0].title}, which logs what is of all\n")


def local_slots(workers: int | None, device: str, threads: int | None = None) -> list[dict]:
    """Environments for :class:`LocalBackend`.

    Args:
        workers: processes at a time; None: one for each CUDA device, or one on the CPU.
        device: SOLVER.DEVICE; with "auto" and "cuda" every process sees one CUDA device only,
            and several share one if there are more processes than devices.
        threads: of one process; None: the processor's threads are divided.
    """
    masks = _device_masks() if device in ("auto", "cuda") else []
    count = workers or len(masks) or 1
    threads = threads or max(1, usable_cores() // count)
    slots = []
    for number in range(count):
        mask = {"CUDA_VISIBLE_DEVICES": masks[number % len(masks)]} if masks else {}
        slots.append({**os.environ, **training_variables(threads), **mask})
    return slots


def training_variables(threads: int) -> dict[str, str]:
    """Environment variables with which a training finds this package and divides the machine."""
    root = str(Path(mdistiller.__file__).resolve().parents[1])
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _device_masks() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES can select each device that this process sees."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]
