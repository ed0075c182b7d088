"""A tool's command line that goes on beside the test, in a process forked as in ``commands``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .commands import ROOT, start


class Forked:
    """``python tools/TOOL.py ARGUMENTS`` without an input, with the methods of a Popen."""

    def __init__(
        self, tool: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = start(tool, *arguments, outputs=self._texts, cwd=cwd, env=env)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed and what went to its standard error, once it has ended."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            raise TimeoutError(f"not ended after {timeout} seconds")
        out, err = (path.read_text() if path.exists() else "" for path in self._texts)
        self._folder.cleanup()
        return out, err
