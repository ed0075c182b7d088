"""What the runs of a table say: read from their folders, never from a training."""

from .compare import compare_runs
from .evidence import write_evidence
from .plan import Plan, find_root, load_plan
from .recorded import load_recorded
from .write import write_report

__all__ = [
    "Plan",
    "compare_runs",
    "find_root",
    "load_plan",
    "load_recorded",
    "write_evidence",
    "write_report",
]
