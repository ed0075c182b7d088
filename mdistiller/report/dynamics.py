"""Weights, cosines and conflicts over training, as the runs logged them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mdistiller.experiments.derive import relative_step

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
STEP = "steps, times plain ones"
_STEPS = (
    "; steps: the sum of learning rate times length of the update, over the same sum for the "
    "update of plain training at the same places"
)


def logged(plan: Plan, row: Row, column: Column, key: str) -> np.ndarray | None:
    """[trials, epochs] of a logged quantity; None where no complete run has it."""
    curves = [run.curve(run.dynamics, key) for run in plan.done(row, column) if run.dynamics]
    curves = [curve for curve in curves if not np.isnan(curve).all()]
    return common(curves) if curves else None


def step_lengths(plan: Plan, row: Row, column: Column) -> list[float]:
    """Of each complete run that tells, see :func:`~mdistiller.experiments.derive.relative_step`."""
    found = (relative_step(run.history) for run in plan.done(row, column))
    return [value for value in found if value is not None]


def dynamics_tables(plan: Plan) -> Iterator[Table]:
    """For every column the least, the greatest and the last epoch mean of each quantity.

    And how long the steps were. Rows and quantities that no run has logged are left out.
    """
    for column in plan.columns:
        found = {
            (row, name): _span(values.mean(axis=0))
            for row in plan.rows
            for key, name in (*WEIGHTS, *COSINES)
            if (values := logged(plan, row, column, key)) is not None
        }
        found |= {
            (row, STEP): numbers.fixed(float(np.mean(lengths)))
            for row in plan.rows
            if (lengths := step_lengths(plan, row, column))
        }
        quantities = (*(n for _, n in (*WEIGHTS, *COSINES)), STEP)
        names = [n for n in quantities if any(n == name for _, name in found)]
        rows = [row for row in plan.rows if any(row == r for r, _ in found)]
        lines = tuple((row.label, *(found.get((row, name), "") for name in names)) for row in rows)
        caption = (
            f"{column.label}: least to greatest epoch mean, then that of the last epoch; weights "
            "as they multiply the configured losses, mean over trials" + _STEPS * (STEP in names)
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
