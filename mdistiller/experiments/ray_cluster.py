"""A Ray cluster: joined, watched, and joined again after its head was restarted.

Ray itself does not outlive its head. Its tasks wait for ever, and after a minute it ends the
process that has started them.
"""

from __future__ import annotations

import os
import socket
import time
from types import ModuleType
from typing import Any

from mdistiller.errors import MdistillerError

# The smallest that Ray takes: nothing is passed between tasks.
_STORE_BYTES = 80 * 2**20
_CONNECT_SECONDS = 10.0

# A head that refuses connections is gone. One that does not answer may be behind a network that
# is down for a moment; Ray gives it a minute.
_UNANSWERED_SECONDS = 30.0
_ASK_SECONDS = 2.0

# How long a cluster may be gone.
WAIT_MINUTES = 60.0


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


class Cluster:
    """A cluster that this process has joined.

    Args:
        address: of a running one, as for ``ray.init``; None: one of this machine, which lives as
            long as this process.
        workers, threads: of the latter, tasks at a time and CPUs of each.

    Raises:
        MdistillerError: Ray or the cluster is not there.
    """

    def __init__(
        self, address: str | None, workers: int | None = None, threads: int | None = None
    ) -> None:
        self.ray = import_ray()
        self.address = address
        self._join(workers, threads)
        # Ray's clients (ray://) are told by their server.
        watched = address is not None and "://" not in address
        self._head = self.ray.get_runtime_context().gcs_address if watched else None
        self._answered = time.monotonic()

    def is_gone(self) -> bool:
        """Whether its head has ended; to be asked often, or a restart is not seen."""
        if self._head is None:
            return False
        try:
            _connect(self._head, _ASK_SECONDS)
        except ConnectionRefusedError:
            return True
        except OSError:
            return time.monotonic() > self._answered + _UNANSWERED_SECONDS
        self._answered = time.monotonic()
        return False

    def leave(self) -> None:
        """Forget it and all its tasks."""
        self.ray.shutdown()

    def is_joined_again(self) -> bool:
        """Join it after :meth:`leave`, if it is there again."""
        try:
            if self._head is not None:
                _connect(self._head, _ASK_SECONDS)
            self._join(None, None)
        except (OSError, MdistillerError):
            self.ray.shutdown()
            return False
        self._answered = time.monotonic()
        return True

    def _join(self, workers: int | None, threads: int | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            # Without an address Ray would also look for a cluster in the environment.
            options |= {"address": "local", "include_dashboard": False}
            options |= {"object_store_memory": _STORE_BYTES}
            if workers:
                options["num_cpus"] = workers * (threads or 1)
        else:
            _refuse_unreachable(self.address)
            options["address"] = self.address
        try:
            self.ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            where = self.address or "local"
            raise MdistillerError(f"cannot join Ray at {where}: {reason}") from None


def _refuse_unreachable(address: str) -> None:
    """Raises MdistillerError if nobody listens at HOST:PORT, for which Ray itself waits long."""
    if "://" in address or not address.rpartition(":")[2].isdigit():
        return
    try:
        _connect(address, _CONNECT_SECONDS)
    except OSError as error:
        raise MdistillerError(f"cannot join Ray at {address}: {error}") from None


def _connect(address: str, seconds: float) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=seconds).close()
