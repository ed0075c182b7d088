"""Many trainings, and what they say together."""

from .compare import Cell, compare, format_table
from .launch import Job, launch

__all__ = ["Cell", "Job", "compare", "format_table", "launch"]
