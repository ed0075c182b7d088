"""Many trainings, and what they say together."""

from .backends import LocalBackend, local_slots
from .compare import Compared, compare, format_table
from .fleet.grouping import ALL
from .job import Job
from .plan import Plan, Request
from .query import Place, places
from .ray_backend import RayBackend
from .records import RESULTS, by_id, read_queries, read_runs
from .reproduce import describe, reproduce
from .schema import Query, Record
from .tables import STUDY, TABLES, build_table
from .tables.pairs import datasets

__all__ = [
    "ALL",
    "RESULTS",
    "STUDY",
    "TABLES",
    "Compared",
    "Job",
    "LocalBackend",
    "Place",
    "Plan",
    "Query",
    "RayBackend",
    "Record",
    "Request",
    "build_table",
    "by_id",
    "compare",
    "datasets",
    "describe",
    "format_table",
    "local_slots",
    "places",
    "read_queries",
    "read_runs",
    "reproduce",
]
