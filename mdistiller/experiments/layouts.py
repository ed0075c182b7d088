"""The rows, pairs and printed numbers of every table and figure, whatever the data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import printed

METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")


@dataclass(frozen=True)
class Row:
    """What a row trains.

    Attributes:
        key, label: for programs and for people.
        method: distillation method, DISTILLER.TYPE without its prefix; "" if the columns say it.
        variant: "vanilla" for fixed weights, else the name of the weighting.
        baseline: key of the row that it is compared with, trial by trial.
        x: weight of the cross-entropy in Figure 2, where both weights add up to 1.
        opts: overrides of its configurations, KEY VALUE ...
    """

    key: str
    label: str
    method: str
    variant: str = "vanilla"
    baseline: str | None = None
    x: float | None = None
    opts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A table before it is laid over a data set."""

    title: str
    kind: str
    rows: tuple[Row, ...]
    pairs: tuple[str, ...]
    column_methods: tuple[str, ...] = ()
    printed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)


def _ours(key: str, label: str, *opts: str, baseline: str | None = None) -> Row:
    return Row(key, label, "KD", "crossbatch", baseline, opts=opts)


def _other(key: str, label: str, *opts: str, baseline: str | None = None) -> Row:
    """Another weighting of the same two losses: the vanilla configuration, another trainer."""
    return Row(key, label, "KD", key, baseline, opts=("SOLVER.TRAINER", *opts))


def _multitask(name: str, baseline: str | None = None) -> Row:
    return _other(name.lower(), name, "multitask", "MULTITASK.METHOD", name, baseline=baseline)


def _table1_rows() -> tuple[Row, ...]:
    rows = []
    for method in METHODS:
        key = method.lower()
        rows.append(Row(key, method, method))
        rows.append(Row(f"{key}_crossbatch", f"{method} + ours", method, "crossbatch", key))
    return tuple(rows)


def _table2_rows() -> tuple[Row, ...]:
    return (
        Row("original", "original", "KD"),
        _other("distill_decay", "distill-decay", "distill_decay", baseline="original"),
        *(_multitask(name, "original") for name in ("MGDA", "FairGrad", "PCGrad")),
        _ours("ours", "ours", baseline="original"),
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
        _ours("ours", "ours (align)", "CROSSBATCH.READING", "align"),
        _ours("ours_printed", "ours (printed)", "CROSSBATCH.READING", "printed"),
        _ours("ours_orthogonal", "ours (orthogonal)", "CROSSBATCH.READING", "orthogonal"),
        # The cone has a wide range, so docs/method.md advises an average of the cosines.
        _ours("ours_cone", "ours (cone)", "CROSSBATCH.READING", "cone", "CROSSBATCH.EMA", "0.9"),
        _other("distill_decay", "distill-decay", "distill_decay"),
        *(_multitask(name) for name in ("MGDA", "FairGrad", "PCGrad", "CAGrad")),
        _other("gradnorm", "GradNorm", "gradnorm"),
        _other("uncertainty", "uncertainty", "uncertainty"),
        _other("gradient_cosine", "gradient cosine", "gradient_cosine"),
    )


def _figure4_rows() -> tuple[Row, ...]:
    """Behind Eq. 10 the preference has no effect (docs/method.md), hence STABILIZE False."""
    unstable = ("CROSSBATCH.STABILIZE", "False", "CROSSBATCH.PREFER")
    return (
        _ours("prefer_ce", "preference for CE", *unstable, "ce"),
        _ours("prefer_kd", "preference for KD", *unstable, "kd", baseline="prefer_ce"),
        _ours("stabilized", "stabilized (Eq. 10)", baseline="prefer_ce"),
    )


LAYOUTS = {
    "table1": Layout(
        "Table 1: distillation methods with fixed weights and with cross-batch weighting",
        "table",
        _table1_rows(),
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
