"""What runs say: read from their folders and records, never from a training."""

from __future__ import annotations

import os

# A notebook's MPLBACKEND may name a module that is not here, without which matplotlib cannot even
# be imported. No window is opened here, so the backend does not matter.
_backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402, F401

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

from .contents import write_report  # noqa: E402
from .evidence import write_evidence  # noqa: E402
from .load import load_all, load_folders, load_table  # noqa: E402
from .results import Results  # noqa: E402

__all__ = [
    "Results",
    "load_all",
    "load_folders",
    "load_table",
    "write_evidence",
    "write_report",
]
