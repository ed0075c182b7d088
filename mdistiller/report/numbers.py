"""How numbers are written in tables; the minus is a true minus sign."""

from __future__ import annotations

import math

from .statistics import Interval, Spread

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def fixed(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A dash for None and NaN; never a signed zero."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def or_blank(value: float | None, sign: bool = False) -> str:
    """:func:`fixed`, but blank for None and NaN."""
    return "" if value is None or math.isnan(value) else fixed(value, sign=sign)


def accuracy(values: Spread | None) -> str:
    """Mean ± sample deviation (n); blank where nothing was measured."""
    if values is None:
        return ""
    return f"{fixed(values.mean)} ± {fixed(values.deviation)} ({values.n})"


def bounds(interval: Interval) -> str:
    """[low, high], or a dash where there is no interval."""
    if math.isnan(interval.low):
        return NONE
    return f"[{fixed(interval.low, sign=True)}, {fixed(interval.high, sign=True)}]"


def probability(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """With the unit that suits."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"
