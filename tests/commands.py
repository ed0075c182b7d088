"""The tools' command lines in processes forked from one that has torch loaded.

A process of its own costs seconds of imports; where it does not matter how Python was started,
a fork of a server that has done them behaves as one to whoever called it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mdistiller.commands.train", "tests.test_kill"])


def run(
    tool: str,
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """The outcome of ``python tools/TOOL.py ARGUMENTS``, without an input."""
    call = (tool, [*map(str, arguments)])
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = start(tool, *arguments, outputs=outputs, cwd=cwd, env=env)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(call, timeout)
        texts = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess(call, process.exitcode, *texts)


def start(
    tool: str,
    *arguments: object,
    outputs: Sequence[str | Path],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """The same while it runs; ``outputs`` are where its standard output and error go."""
    call = (tool, [*map(str, arguments)], str(cwd), dict(env or os.environ), outputs)
    process = CONTEXT.Process(target=_call, args=call)
    process.start()
    return process


def as_started_anew() -> None:
    """Make a forked process as a new one is, but for what it has loaded."""
    import torch

    torch.set_num_threads(1)
    # A data loader's workers would come from a server of their own, which loads everything again.
    multiprocessing.set_start_method(None, force=True)


def _call(
    tool: str, arguments: list[str], cwd: str, env: dict[str, str], outputs: Sequence[str | Path]
) -> NoReturn:
    for target, path in ((0, os.devnull), *zip((1, 2), outputs, strict=True)):
        flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags), target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(ROOT / "tools" / f"{tool}.py"), *arguments]
    as_started_anew()
    importlib.import_module(f"mdistiller.commands.{tool}").main()
    sys.exit(0)
