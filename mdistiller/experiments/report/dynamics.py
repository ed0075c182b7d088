"""Weights, cosines and conflicts over training, as the runs logged them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import numbers
from .document import Table
from .plan import Column, Plan, Row
from .runs import common

WEIGHTS = (("ce", "weight of ce"), ("kd", "weight of kd"))
COSINES = (
    ("c_ce", "cos(ce, ref)"),
    ("c_kd", "cos(kd, ref)"),
    ("c_12", "cos(ce, kd)"),
    ("conflict", "share of conflicts"),
)


def logged(plan: Plan, row: Row, column: Column, key: str) -> np.ndarray | None:
    """[trials, epochs] of a logged quantity; None where no complete run has it."""
    curves = [run.curve(run.dynamics, key) for run in plan.done(row, column) if run.dynamics]
    curves = [curve for curve in curves if not np.isnan(curve).all()]
    return common(curves) if curves else None


def dynamics_tables(plan: Plan) -> Iterator[Table]:
    """For every column the least, the greatest and the last epoch mean of each quantity.

    Rows and quantities that no run has logged are left out.
    """
    for column in plan.columns:
        found = {
            (row, name): _span(values.mean(axis=0))
            for row in plan.rows
            for key, name in (*WEIGHTS, *COSINES)
            if (values := logged(plan, row, column, key)) is not None
        }
        names = [n for _, n in (*WEIGHTS, *COSINES) if any(n == name for _, name in found)]
        rows = [row for row in plan.rows if any(row == r for r, _ in found)]
        lines = tuple((row.label, *(found.get((row, name), "") for name in names)) for row in rows)
        caption = (
            f"{column.label}: least to greatest epoch mean, then that of the last epoch; weights "
            "as they multiply the configured losses, mean over trials"
        )
        if lines:
            yield Table(caption, ("method", *names), lines)


def _span(values: np.ndarray) -> str:
    """Of one quantity [epochs]."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return ""
    low, high, last = (numbers.fixed(float(v)) for v in (known.min(), known.max(), known[-1]))
    return f"{low} to {high},\nlast {last}"
