"""The names that ``SOLVER.TRAINER`` may take."""

from __future__ import annotations

from mdistiller.config.registry import MethodRegistry

trainer_dict = MethodRegistry("trainer", "SOLVER.TRAINER", str.upper)
