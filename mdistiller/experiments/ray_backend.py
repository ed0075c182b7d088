"""Trains jobs as Ray tasks, on this machine or on a cluster that shares its folders.

A task starts the same process as :class:`~.backends.LocalBackend` does, on the machine
that Ray chooses, in the caller's working folder, which must lie on a path that all machines
share. If the worker is lost, its training ends with it (see :mod:`~.worker`), and Ray starts
the task again, which continues from the last checkpoint. If the cluster is lost, all its
trainings end, and the tasks are given to the one that comes after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mdistiller.console import log
from mdistiller.device import usable_cores
from mdistiller.errors import MdistillerError

from . import watch
from .backends import begin_logs, command, signs_of_life, training_variables
from .job import Job
from .ray_cluster import WAIT_MINUTES, Cluster

# How often a task is started again after its worker was lost.
RETRIES = 5

_NO_RESULT = 1
_POLL_SECONDS = 0.5

# Tasks that wait in Ray, so that a growing cluster has something to do; the others are left to
# calls on other machines.
_QUEUE = 32


class RayBackend:
    """Ray tasks; Ray itself decides how many fit.

    Args:
        address: of a running cluster, as for ``ray.init``; None: a cluster of this machine.
        workers: tasks at a time on this machine; None: one for each GPU, or one.
        gpus_per_run: share of a GPU for each run; None: one if the cluster has any, else none.
        threads: processor threads, and Ray's CPUs, of each run; None: this machine's divided
            by ``workers``, or one on a cluster.
        hang_minutes: as for :class:`~.backends.LocalBackend`.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_run: float | None = None,
        threads: int | None = None,
        hang_minutes: float = watch.HANG_MINUTES,
    ) -> None:
        self._cluster = Cluster(address, workers, threads)
        self._ray = ray = self._cluster.ray
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
        self._options = {"num_cpus": cpus, "num_gpus": gpus_per_run}
        self._hang_minutes = hang_minutes
        self._train = _task(ray, **self._options)
        self._running: dict[Any, Sequence[Job]] = {}
        # Jobs whose tasks were lost with the cluster, and when they are given up.
        self._lost: list[Sequence[Job]] = []
        self._give_up = 0.0

    def has_room(self) -> bool:
        """Ray queues what does not fit, and a cluster may grow."""
        return not self._lost and len(self._running) < self.size + _QUEUE

    def start(self, jobs: Sequence[Job]) -> None:
        begin_logs(jobs)
        arguments = os.getcwd(), command(jobs), self._variables, signs_of_life(jobs)
        self._running[self._train.remote(*arguments, self._hang_minutes)] = jobs

    def finished(self) -> list[tuple[Job, int]]:
        """Jobs whose task has ended since the last call, with its exit status.

        Raises:
            MdistillerError: the cluster was lost and has not come back.
        """
        if self._lost:
            return self._start_again()
        if not self._running:
            return []
        if self._cluster.is_gone():
            self._lose()
            return []
        count = len(self._running)
        refs, _ = self._ray.wait(list(self._running), num_returns=count, timeout=0)
        ended = [(ref, self._running.pop(ref)) for ref in refs]
        codes = [(self._exit_status(ref, jobs[0]), jobs) for ref, jobs in ended]
        return [(job, code) for code, jobs in codes for job in jobs]

    def _lose(self) -> None:
        self._lost = list(self._running.values())
        self._running.clear()
        self._give_up = time.monotonic() + 60 * WAIT_MINUTES
        self._cluster.leave()
        log(
            f"Ray at {self._cluster.address} has ended; {len(self._lost)} tasks are started again "
            f"as soon as it is back (waiting for {WAIT_MINUTES:g} minutes)"
        )

    def _start_again(self) -> list[tuple[Job, int]]:
        """Give what was lost to the new cluster, if it is there; jobs that ended before."""
        if not self._cluster.is_joined_again():
            if time.monotonic() > self._give_up:
                raise MdistillerError(
                    f"Ray at {self._cluster.address} has been gone for {WAIT_MINUTES:g} minutes; "
                    "start it and give the same command again, which goes on where the runs are"
                )
            return []
        self._train = _task(self._ray, **self._options)
        fleets, self._lost = self._lost, []
        done = [job for jobs in fleets for job in jobs if job.result() is not None]
        for jobs in fleets:
            if left := [job for job in jobs if job not in done]:
                self.start(left)
        log(f"Ray at {self._cluster.address} is back; {len(self._running)} tasks started again")
        return [(job, 0) for job in done]

    def _exit_status(self, ref: Any, job: Job) -> int:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            # The training itself never raises; this is a worker lost once too often.
            with job.open_log() as file:
                file.write(f"error: {' '.join(str(error).split())}\n")
            return _NO_RESULT

    def stop(self) -> None:
        """End all tasks; their workers take the trainings with them."""
        for ref in self._running:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        self._ray.shutdown()


def run_on_ray(commands: Sequence[list[str]], address: str, output: Path) -> list[int]:
    """Run Python with each of ``commands`` as a task of its own; returns their exit statuses.

    Args:
        commands: what follows the interpreter; PARENT stands for the id of the task's process.
        address: of a running cluster, as for ``ray.init``.
        output: takes what they print.

    Raises:
        MdistillerError: Ray is not there or has ended, or a task was lost too often.
    """
    cluster = Cluster(address)
    ray = cluster.ray
    try:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        task = _task(ray, num_cpus=1, num_gpus=gpus)
        folder, variables = os.getcwd(), training_variables(1)
        waiting = refs = [task.remote(folder, c, variables, [str(output)], 0.0) for c in commands]
        while waiting:
            if cluster.is_gone():
                raise MdistillerError(
                    f"Ray at {address} has ended; start it and give the same command again, which "
                    "goes on with what is left"
                )
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
        return ray.get(refs)
    except ray.exceptions.RayError as error:
        raise MdistillerError(f"Ray: {' '.join(str(error).split())[:300]}") from None
    finally:
        ray.shutdown()


def _threads_each(workers: int) -> int:
    return max(1, usable_cores() // workers)


def _task(ray: ModuleType, **resources: float) -> Any:
    """:func:`~.watch.train` as a task of the cluster that is joined now."""
    # Sent whole, see there.
    ray.cloudpickle.register_pickle_by_value(watch)
    function: Callable[..., int] = watch.train
    return ray.remote(max_retries=RETRIES, retry_exceptions=False, **resources)(function)
