"""What the runs of a table say: read from their folders, never from a training."""

from .compare import compare_runs
from .plan import Plan, find_root, load_plan
from .write import write_report

__all__ = ["Plan", "compare_runs", "find_root", "load_plan", "write_report"]
