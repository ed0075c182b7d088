"""The summary that a finished run leaves in ``result.json``."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from typing import Any

import torch

import mdistiller
from mdistiller.device import processor
from mdistiller.shipped import checkout


def run_result(
    cfg,
    device: torch.device,
    *,
    name: str,
    history: list[dict[str, Any]],
    best: tuple[float, int],
    seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """Last **and** best accuracy, and what one needs to know to obtain them again.

    Args:
        history: the entries of metrics.jsonl, the last of which is the last epoch.
        best: best test top-1 in percent and its epoch.
        seconds: time of training and validation, interruptions left out; of a run in a fleet
            its part of the process's time (:class:`~mdistiller.engine.runtime.clock.SharedTime`).
        **more: further entries, such as the teacher's accuracy.
    """
    last = history[-1]
    return {
        "name": name,
        "dataset": cfg.DATASET.TYPE,
        "distiller": cfg.DISTILLER.TYPE,
        "trainer": cfg.SOLVER.TRAINER,
        "teacher": None if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TEACHER,
        "student": cfg.DISTILLER.STUDENT,
        "seed": cfg.EXPERIMENT.SEED,
        "epochs": last["epoch"],
        "last_top1": last["test_acc"],
        "last_top5": last["test_acc_top5"],
        "best_top1": best[0],
        "best_epoch": best[1],
        "seconds": seconds,
        # The largest, if the run was continued in another one: how its seconds were measured.
        "fleet": max(entry.get("fleet", 1) for entry in history),
        "device": device_name(device),
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": {
            "mdistiller": mdistiller.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
        },
        "commit": source_commit(),
        **more,
    }


def device_name(device: torch.device) -> str:
    """E.g. "cuda: NVIDIA H100" or "cpu: x86_64"."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.processor() or platform.machine()}"


@cache
def source_commit() -> str | None:
    """The commit of the checkout this package is in, "-dirty" if changed; None outside one.

    As it was when a process first asked: what trains is the code that was loaded then.
    """
    root = checkout()
    if root is None:
        return None
    # GIT_DIR and its like, as set in a hook or by a tool, speak of another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
