"""What the configuration knows of one setting, and the rules that its values obey."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("", "real", "path", "input", "texts")


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy.

    Attributes:
        holds: whether a value of the right type does.
        words: completes "KEY must be ...".
    """

    holds: Callable[[Any], bool]
    words: str


positive = Rule(lambda v: v > 0, "greater than 0")
not_negative = Rule(lambda v: v >= 0, "0 or greater")
at_least_one = Rule(lambda v: v >= 1, "1 or greater")
below_one = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
fraction = Rule(lambda v: 0 <= v <= 1, "in [0, 1]")
ascending_epochs = Rule(
    lambda v: list(v) == sorted(v) and all(x >= 1 for x in v), "ascending epochs from 1"
)


def one_of(*values: str) -> Rule:
    """The value is one of ``values``."""
    return Rule(lambda v: v in values, f"one of {', '.join(values)}")


@dataclass(frozen=True)
class Setting:
    """One key of the configuration.

    The type of ``default`` (bool, int, float, str, or a list or tuple of numbers) is the type of
    the setting.

    Args:
        default: its value where nothing sets it.
        rule: what a value must satisfy beside its type; None for nothing.
        doc: one line for docs/config.md.
        affects_result: whether the numbers of a run depend on it. Those on which they do not may
            differ between a checkpoint and the run that resumes it, and are no part of a run's
            identity or name.
        first: the default of the first version that had it, if that was another one: a change of
            a default must not make every earlier run another one.
        kind: "real": whole by default, but a fraction makes sense; "path": a file or folder, in
            which a leading ``~`` is expanded; "input": a path to a file of another run, of which
            the content counts, not where it lies; "texts": a list of texts.

    Raises:
        ValueError: the default is of no such type, or breaks the rule.
    """

    default: Any
    rule: Rule | None = None
    doc: str = ""
    affects_result: bool = True
    kind: str = ""
    first: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.default, (bool, int, float, str, list, tuple)):
            raise ValueError(
                f"the default of a setting is True or False, a number, a text or a list, "
                f"not {self.default!r}"
            )
        if self.kind not in KINDS:
            raise ValueError(f"the kind of a setting is one of {KINDS}, not {self.kind!r}")
        if self.rule is not None and not self.rule.holds(self.default):
            raise ValueError(f"the default {self.default!r} is not {self.rule.words}")

    def value(self) -> Any:
        """A default that may be changed without changing this one."""
        return list(self.default) if isinstance(self.default, list) else self.default

    @property
    def is_path(self) -> bool:
        return self.kind in ("path", "input")


# The settings of a method or of a group by their keys within it, e.g. "LOSS.CE_WEIGHT".
Settings = Mapping[str, Setting]
