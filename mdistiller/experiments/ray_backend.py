"""Trains jobs as Ray tasks, on this machine or on a cluster that shares its folders.

A task starts the same process as :class:`~.backends.LocalBackend` does, on the machine
that Ray chooses, in the caller's working folder, which must lie on a path that all machines
share. If the worker is lost, its training ends with it (see :mod:`~.worker`), and Ray starts
the task again, which continues from the last checkpoint.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mdistiller.device import usable_cores
from mdistiller.errors import MdistillerError

from .backends import begin_logs, command, training_variables
from .job import Job

# How often a task is started again after its worker was lost.
RETRIES = 5

# The smallest that Ray takes: nothing is passed between tasks.
_STORE_BYTES = 80 * 2**20
_NO_RESULT = 1
_CONNECT_SECONDS = 10.0

# Tasks that wait in Ray, so that a growing cluster has something to do; the others are left to
# calls on other machines.
_QUEUE = 32


def import_ray() -> ModuleType:
    """Ray, an optional dependency.

    Raises:
        MdistillerError: it is not installed.
    """
    # Not without being asked, see README.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The future default, without which every task on a machine without GPU prints a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise MdistillerError(
            "--backend ray needs Ray, which is not installed: pip install 'mdistiller[ray]'"
        ) from None
    return ray


class RayBackend:
    """Ray tasks; Ray itself decides how many fit.

    Args:
        address: of a running cluster, as for ``ray.init``; None: a cluster of this machine.
        workers: tasks at a time on this machine; None: one for each GPU, or one.
        gpus_per_run: share of a GPU for each run; None: one if the cluster has any, else none.
        threads: processor threads, and Ray's CPUs, of each run; None: this machine's divided
            by ``workers``, or one on a cluster.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_run: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._ray = ray = import_ray()
        _join(ray, address, workers, threads)
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0)
        if gpus_per_run is None:
            gpus_per_run = 1.0 if gpus else 0.0
        if gpus_per_run > gpus:
            ray.shutdown()
            raise MdistillerError(
                f"--gpus-per-run {gpus_per_run:g}, but the cluster has {gpus:g} GPUs"
            )
        cpus = threads or 1
        slots = gpus / gpus_per_run if gpus_per_run else resources.get("CPU", 1) / cpus
        self.size = max(1, int(slots))
        threads = threads or (1 if address else _threads_each(workers or self.size))
        self._variables = training_variables(threads)
        self._task = ray.remote(
            num_cpus=cpus, num_gpus=gpus_per_run, max_retries=RETRIES, retry_exceptions=False
        )(_make_task())
        self._running: dict[Any, Sequence[Job]] = {}

    def has_room(self) -> bool:
        """Ray queues what does not fit, and a cluster may grow."""
        return len(self._running) < self.size + _QUEUE

    def start(self, jobs: Sequence[Job]) -> None:
        begin_logs(jobs)
        log = str(jobs[0].log)
        ref = self._task.remote(os.getcwd(), command(jobs), self._variables, log)
        self._running[ref] = jobs

    def finished(self) -> list[tuple[Job, int]]:
        """Jobs whose task has ended since the last call, with its exit status."""
        if not self._running:
            return []
        count = len(self._running)
        refs, _ = self._ray.wait(list(self._running), num_returns=count, timeout=0)
        ended = [(ref, self._running.pop(ref)) for ref in refs]
        codes = [(self._exit_status(ref, jobs[0]), jobs) for ref, jobs in ended]
        return [(job, code) for code, jobs in codes for job in jobs]

    def _exit_status(self, ref: Any, job: Job) -> int:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            # The training itself never raises; this is a worker lost once too often.
            with job.open_log() as log:
                log.write(f"error: {' '.join(str(error).split())}\n")
            return _NO_RESULT

    def stop(self) -> None:
        """End all tasks; their workers take the trainings with them."""
        for ref in self._running:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        self._ray.shutdown()


def run_on_ray(commands: Sequence[list[str]], address: str, log: Path) -> list[int]:
    """Run Python with each of ``commands`` as a task of its own; returns their exit statuses.

    Args:
        commands: what follows the interpreter; PARENT stands for the id of the task's process.
        address: of a running cluster, as for ``ray.init``.
        log: takes what they print.

    Raises:
        MdistillerError: Ray is not there, or a task was lost too often.
    """
    ray = import_ray()
    _join(ray, address, None, None)
    try:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_make_task())
        variables = training_variables(1)
        return ray.get([task.remote(os.getcwd(), c, variables, str(log)) for c in commands])
    except ray.exceptions.RayError as error:
        raise MdistillerError(f"Ray: {' '.join(str(error).split())[:300]}") from None
    finally:
        ray.shutdown()


def _join(ray: ModuleType, address: str | None, workers: int | None, threads: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        # Without an address Ray would also look for a cluster in the environment.
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": _STORE_BYTES}
        if workers:
            options["num_cpus"] = workers * (threads or 1)
    else:
        _refuse_unreachable(address)
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MdistillerError(f"cannot join Ray at {address or 'local'}: {reason}") from None


def _refuse_unreachable(address: str) -> None:
    """Raises MdistillerError if nobody listens at HOST:PORT, for which Ray itself waits long."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise MdistillerError(f"cannot join Ray at {address}: {error}") from None


def _threads_each(workers: int) -> int:
    return max(1, usable_cores() // workers)


def _make_task() -> Callable[..., int]:
    """The function that a Ray worker calls.

    Made here, because Ray then sends it whole: a worker that had to import this package, torch
    with it, would take seconds and hundreds of megabytes.
    """

    def train(folder: str, command: list[str], variables: dict[str, str], log: str) -> int:
        """Train in a process of its own, in ``folder``; returns its exit status."""
        command = [str(os.getpid()) if word == "PARENT" else word for word in command]
        with open(os.path.join(folder, log), "a", encoding="utf-8") as file:
            return subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # The worker's own variables say which devices Ray has given to this task.
                env={**os.environ, **variables},
                start_new_session=True,
            ).returncode

    return train
