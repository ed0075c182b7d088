"""The rows, pairs and printed numbers of every table and figure, whatever the data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from . import printed
from .authors import AUTHORS
from .published import PUBLISHED, TABLE3_PAIRS, Number

METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")


@dataclass(frozen=True)
class Derived:
    """Settings that are made of numbers of a finished run of the same pair and trial.

    Attributes:
        source: key of that run's row.
        how: one of :data:`~.derive.WAYS`.
    """

    source: str
    how: str


@dataclass(frozen=True)
class Row:
    """What a row trains.

    Attributes:
        key, label: for programs and for people.
        method: distillation method, DISTILLER.TYPE without its prefix; "" if the columns say it.
        variant: "vanilla" for fixed weights, "control" for settings that a comparison needs,
            "selection" for runs on held-out images, else the name of the weighting.
        baseline: key of the row that it is compared with, trial by trial.
        x: weight of the cross-entropy in Figure 2, where both weights add up to 1.
        opts: overrides of its configurations, KEY VALUE ...
        derived: where further overrides come from, which differ from trial to trial.
        config: what its configuration files are called where not by the method: a key of
            :data:`~.authors.AUTHORS`.
    """

    key: str
    label: str
    method: str
    variant: str = "vanilla"
    baseline: str | None = None
    x: float | None = None
    opts: tuple[str, ...] = ()
    derived: Derived | None = None
    config: str = ""


@dataclass(frozen=True)
class Layout:
    """A table before it is laid over a data set.

    Tables with the same ``seeds`` share the seed of a pair and trial; empty: the table's name.
    ``printed`` has the paper's numbers, ``published`` those of other papers with their protocols,
    by rows and pairs.
    """

    title: str
    kind: str
    rows: tuple[Row, ...]
    pairs: tuple[str, ...]
    column_methods: tuple[str, ...] = ()
    printed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)
    seeds: str = ""
    published: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)


def ours_row(key: str, label: str, *opts: str, baseline: str | None = None) -> Row:
    return Row(key, label, "KD", "crossbatch", baseline, opts=opts)


def at_first_alpha(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """``rows`` with the α that was shipped when their runs were recorded, where they name none."""
    key = "CROSSBATCH.ALPHA"
    return tuple(
        replace(row, opts=(*row.opts, key, "0.5"))
        if row.variant == "crossbatch" and key not in row.opts
        else row
        for row in rows
    )


def other_row(key: str, label: str, *opts: str, baseline: str | None = None) -> Row:
    """Another weighting of the same two losses: the vanilla configuration, another trainer."""
    return Row(key, label, "KD", key, baseline, opts=("SOLVER.TRAINER", *opts))


def multitask_row(name: str, baseline: str | None = None) -> Row:
    return other_row(name.lower(), name, "multitask", "MULTITASK.METHOD", name, baseline=baseline)


def table1_rows() -> tuple[Row, ...]:
    return tuple(row for method in METHODS for row in _both(method.lower(), method, method, ""))


def _table2_rows() -> tuple[Row, ...]:
    return (
        Row("original", "original", "KD"),
        other_row("distill_decay", "distill-decay", "distill_decay", baseline="original"),
        *(multitask_row(name, "original") for name in ("MGDA", "FairGrad", "PCGrad")),
        ours_row("ours", "ours", baseline="original"),
    )


def _table3_rows() -> tuple[Row, ...]:
    """KD, then the newer methods; the usual tables mix one view of an image with two."""
    rows = [*_both("kd", "KD", "KD", "")]
    for key, row in AUTHORS.items():
        label = f"{row.label}, two views" if row.two_views else row.label
        rows += _both(key, label, row.distiller, key)
    return tuple(rows)


def _both(key: str, label: str, method: str, config: str) -> tuple[Row, Row]:
    return (
        Row(key, label, method, config=config),
        Row(f"{key}_crossbatch", f"{label} + ours", method, "crossbatch", key, config=config),
    )


def _figure2_rows(method: str) -> tuple[Row, ...]:
    """The paper draws differences to equal importance, 0.5 : 0.5."""
    return tuple(
        Row(
            f"x{n / 10}",
            f"{n / 10} : {(10 - n) / 10}",
            method,
            baseline=None if n == 5 else "x0.5",
            x=n / 10,
        )
        for n in range(1, 10)
    )


def _figure3_rows() -> tuple[Row, ...]:
    return (
        ours_row("ours", "ours (align)", "CROSSBATCH.READING", "align"),
        ours_row("ours_printed", "ours (printed)", "CROSSBATCH.READING", "printed"),
        ours_row("ours_orthogonal", "ours (orthogonal)", "CROSSBATCH.READING", "orthogonal"),
        # The cone has a wide range, so docs/method.md advises an average of the cosines.
        ours_row("ours_cone", "ours (cone)", "CROSSBATCH.READING", "cone", "CROSSBATCH.EMA", "0.9"),
        other_row("distill_decay", "distill-decay", "distill_decay"),
        *(multitask_row(name) for name in ("MGDA", "FairGrad", "PCGrad", "CAGrad")),
        other_row("gradnorm", "GradNorm", "gradnorm"),
        other_row("uncertainty", "uncertainty", "uncertainty"),
        other_row("gradient_cosine", "gradient cosine", "gradient_cosine"),
    )


def _figure4_rows() -> tuple[Row, ...]:
    """Behind Eq. 10 the preference has no effect (docs/method.md), hence STABILIZE False."""
    unstable = ("CROSSBATCH.STABILIZE", "False", "CROSSBATCH.PREFER")
    return at_first_alpha(
        (
            ours_row("prefer_ce", "preference for CE", *unstable, "ce"),
            ours_row("prefer_kd", "preference for KD", *unstable, "kd", baseline="prefer_ce"),
            ours_row("stabilized", "stabilized (Eq. 10)", baseline="prefer_ce"),
        )
    )


LAYOUTS = {
    "table1": Layout(
        "Table 1: distillation methods with fixed weights and with cross-batch weighting",
        "table",
        table1_rows(),
        printed.TABLE1_PAIRS,
        printed=printed.TABLE1,
        averages=printed.TABLE1_AVERAGES,
    ),
    "table2": Layout(
        "Table 2: KD with dynamic weightings",
        "table",
        _table2_rows(),
        printed.TABLE2_PAIRS,
        printed=printed.TABLE2,
        averages=printed.TABLE2_AVERAGES,
    ),
    "table3": Layout(
        "Table 3: newer distillation methods with fixed weights and with cross-batch weighting",
        "table",
        _table3_rows(),
        TABLE3_PAIRS,
        published=PUBLISHED,
    ),
    "figure2a": Layout(
        "Figure 2a: sensitivity of KD to its loss weights",
        "sensitivity",
        _figure2_rows("KD"),
        ("wrn40_2_wrn40_1", "res101_res50", "vgg13_vgg8"),
    ),
    "figure2b": Layout(
        "Figure 2b: sensitivity of several methods to their loss weights",
        "sensitivity",
        _figure2_rows(""),
        ("vgg13_vgg8",),
        ("RKD", "KDSVD", "PKT"),
    ),
    # The paper does not say on which pair; this is its first small one.
    "figure3": Layout(
        "Figure 3: loss weights over training", "dynamics", _figure3_rows(), ("res56_res20",)
    ),
    "figure4": Layout(
        "Figure 4: preference for the supervised or the distillation loss",
        "preference",
        _figure4_rows(),
        ("res101_res50", "vgg13_vgg8"),
    ),
}
