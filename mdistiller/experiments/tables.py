"""The paper's tables and figures as data: rows, columns, and the configuration of every cell.

>>> table = build_table("table1")
>>> len(table.cells), table.trials
(70, 5)
>>> cell = table.cell("kd", "res56_res20")
>>> cell.cfg_file, cell.printed
('configs/cifar100/baseline/kd_res56_res20.yaml', 70.62)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mdistiller.engine.cfg import load_cfg

from . import printed
from .pairs import PAIRS, PAPERS_DATASET, SMALL_PAIRS, Pair, choose, config_of, datasets

TRIALS = 5
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
class Column:
    """A pair of networks; in Figure 2b also a method, which is the line that is drawn."""

    key: str
    label: str
    pair: Pair
    method: str = ""


@dataclass(frozen=True)
class Cell:
    """One configuration, trained once per trial; ``printed`` is the paper's number."""

    row: Row
    column: Column
    cfg_file: str
    opts: tuple[str, ...] = ()
    printed: float | None = None

    @property
    def method(self) -> str:
        return self.row.method or self.column.method


@dataclass(frozen=True)
class Table:
    """All cells of a table or figure on one data set.

    Attributes:
        kind: "table", "sensitivity" (Figure 2), "dynamics" (3) or "preference" (4).
        averages: printed means over the columns by row key.
        trials: as many as the paper has.
    """

    name: str
    title: str
    dataset: str
    kind: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    averages: dict[str, float] = field(default_factory=dict)
    trials: int = TRIALS

    def cell(self, row: str, column: str) -> Cell:
        return next(c for c in self.cells if (c.row.key, c.column.key) == (row, column))


@dataclass(frozen=True)
class _Layout:
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


_LAYOUTS = {
    "table1": _Layout(
        "Table 1: distillation methods with fixed weights and with cross-batch weighting",
        "table",
        _table1_rows(),
        printed.TABLE1_PAIRS,
        printed=printed.TABLE1,
        averages=printed.TABLE1_AVERAGES,
    ),
    "table2": _Layout(
        "Table 2: KD with dynamic weightings",
        "table",
        _table2_rows(),
        printed.TABLE2_PAIRS,
        printed=printed.TABLE2,
        averages=printed.TABLE2_AVERAGES,
    ),
    "figure2a": _Layout(
        "Figure 2a: sensitivity of KD to its loss weights",
        "sensitivity",
        _figure2_rows("KD"),
        ("wrn40_2_wrn40_1", "res101_res50", "vgg13_vgg8"),
    ),
    "figure2b": _Layout(
        "Figure 2b: sensitivity of several methods to their loss weights",
        "sensitivity",
        _figure2_rows(""),
        ("vgg13_vgg8",),
        ("RKD", "KDSVD", "PKT"),
    ),
    # The paper does not say on which pair; this is its first small one.
    "figure3": _Layout(
        "Figure 3: loss weights over training", "dynamics", _figure3_rows(), ("res56_res20",)
    ),
    "figure4": _Layout(
        "Figure 4: preference for the supervised or the distillation loss",
        "preference",
        _figure4_rows(),
        ("res101_res50", "vgg13_vgg8"),
    ),
}
TABLES = tuple(_LAYOUTS)


def build_table(
    name: str,
    dataset: str = PAPERS_DATASET,
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> Table:
    """A table, or a part of it.

    Args:
        name: one of :data:`TABLES`.
        dataset: one of :func:`~.pairs.datasets`.
        pairs: keys of columns' pairs; none: the paper's on CIFAR-100, else
            :data:`~.pairs.SMALL_PAIRS`, which may be given together with the paper's.
        methods: distillation methods or keys of rows; none: all.

    Raises:
        UnknownNameError: names what was unknown and the nearest valid name.
    """
    (name,) = choose("table", [name], TABLES)
    (dataset,) = choose("data set", [dataset], datasets())
    layout = _LAYOUTS[name]
    valid = layout.pairs if dataset == PAPERS_DATASET else PAIRS
    chosen = choose("pair", pairs, valid) if pairs else _default_pairs(layout, dataset)
    columns = _columns(layout, [PAIRS[key] for key in chosen])
    cells = [_cell(layout, dataset, row, column) for row in layout.rows for column in columns]
    if methods:
        names = dict.fromkeys([*(c.method for c in cells), *(r.key for r in layout.rows)])
        wanted = {m.casefold() for m in choose("method", methods, names)}
        cells = [c for c in cells if {c.method.casefold(), c.row.key.casefold()} & wanted]
    return Table(
        name,
        layout.title,
        dataset,
        layout.kind,
        tuple(r for r in layout.rows if any(c.row == r for c in cells)),
        tuple(c for c in columns if any(cell.column == c for cell in cells)),
        tuple(cells),
        layout.averages,
    )


def _default_pairs(layout: _Layout, dataset: str) -> tuple[str, ...]:
    if dataset == PAPERS_DATASET:
        return layout.pairs
    return SMALL_PAIRS[: len(layout.pairs)]


def _columns(layout: _Layout, pairs: list[Pair]) -> list[Column]:
    if not layout.column_methods:
        return [Column(pair.key, pair.label, pair) for pair in pairs]
    return [
        Column(f"{method.lower()}_{pair.key}", f"{method}, {pair.label}", pair, method)
        for method in layout.column_methods
        for pair in pairs
    ]


def _cell(layout: _Layout, dataset: str, row: Row, column: Column) -> Cell:
    cell = Cell(row, column, "")
    crossbatch = row.variant == "crossbatch"
    cfg_file, networks = config_of(dataset, cell.method, column.pair, crossbatch)
    number = None
    if row.key in layout.printed and column.key in layout.pairs:
        number = layout.printed[row.key][layout.pairs.index(column.key)]
    cell = replace(cell, cfg_file=cfg_file, opts=(*networks, *row.opts), printed=number)
    return cell if row.x is None else replace(cell, opts=(*cell.opts, *_weights(cell, row.x)))


def _weights(cell: Cell, x: float) -> tuple[str, ...]:
    """Overrides that give the cross-entropy the importance ``x`` and the other loss 1 - x.

    KD's weights are the importances themselves. Those of other methods are multiples of the
    method's own weights, which 0.5 : 0.5 stands for (caption of Figure 2).
    """
    loss = f"{cell.method}.LOSS"
    if cell.method == "KD":
        return (f"{loss}.CE_WEIGHT", _number(x), f"{loss}.KD_WEIGHT", _number(1 - x))
    own = load_cfg(cell.cfg_file, cell.opts)[cell.method].LOSS
    return (
        *(f"{loss}.CE_WEIGHT", _number(2 * x * own.CE_WEIGHT)),
        *(f"{loss}.FEAT_WEIGHT", _number(2 * (1 - x) * own.FEAT_WEIGHT)),
    )


def _number(value: float) -> str:
    """Without the last digits of binary fractions: 0.1, not 0.09999999999999998."""
    return format(value, ".10g")
