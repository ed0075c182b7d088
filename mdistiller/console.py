"""What the product prints: messages with a coloured mode on a terminal."""

from __future__ import annotations

import sys

_COLOURS = {"INFO": 36, "TRAIN": 32, "EVAL": 31, "WARN": 33}


def log_msg(msg: str, mode: str = "INFO") -> str:
    """``msg`` with a coloured mode in front, for a terminal."""
    return f"\033[{_COLOURS[mode]}m[{mode}] {msg}\033[0m"


def say(msg: str, mode: str = "INFO") -> None:
    """Print ``msg``, with its coloured mode where the output is a terminal."""
    print(log_msg(msg, mode) if sys.stdout.isatty() else msg, flush=True)
