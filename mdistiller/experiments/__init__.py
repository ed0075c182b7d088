"""Many trainings, and what they say together."""

from .compare import Cell, compare, format_table
from .fleet.grouping import ALL
from .job import Job
from .launch import launch
from .local_backend import LocalBackend, local_slots
from .plan import Request, make_plan
from .ray_backend import RayBackend
from .record import RESULTS
from .reproduce import describe, reproduce
from .tables import TABLES, build_table
from .tables.pairs import datasets
from .tables.study import STUDY

__all__ = [
    "ALL",
    "RESULTS",
    "STUDY",
    "TABLES",
    "Cell",
    "Job",
    "LocalBackend",
    "RayBackend",
    "Request",
    "build_table",
    "compare",
    "datasets",
    "describe",
    "format_table",
    "launch",
    "local_slots",
    "make_plan",
    "reproduce",
]
