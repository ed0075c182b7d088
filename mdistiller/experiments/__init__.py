"""Many trainings, and what they say together."""

from .compare import Cell, compare, format_table
from .fleets import ALL
from .job import Job
from .launch import launch
from .local_backend import LocalBackend, local_slots
from .pairs import datasets
from .plan import Request, make_plan
from .ray_backend import RayBackend
from .record import RESULTS
from .reproduce import describe, reproduce
from .study_layouts import STUDY
from .tables import TABLES, build_table

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
