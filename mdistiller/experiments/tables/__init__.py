"""The paper's tables and figures as data: rows, columns, and the configuration of every cell.

Examples:
    >>> table = build_table("table1")
    >>> len(table.cells), table.trials
    (70, 5)
    >>> cell = table.cell("kd", "res56_res20")
    >>> cell.cfg_file, cell.printed
    ('configs/cifar100/baseline/kd_res56_res20.yaml', 70.62)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mdistiller.config import load_cfg

from . import layouts
from . import study as study_layouts
from .layouts import Layout, Row
from .pairs import PAIRS, PAPERS_DATASET, SMALL_PAIRS, Pair, choose, config_of, datasets
from .published import Number
from .study import STUDY

TRIALS = 5


@dataclass(frozen=True)
class Column:
    """A pair of networks; in Figure 2b also a method, which is the line that is drawn."""

    key: str
    label: str
    pair: Pair
    method: str = ""


@dataclass(frozen=True)
class Cell:
    """One configuration, trained once per trial.

    Attributes:
        printed: the paper's number.
        published: another paper's number, with its protocol.
    """

    row: Row
    column: Column
    cfg_file: str
    opts: tuple[str, ...] = ()
    printed: float | None = None
    published: Number | None = None

    @property
    def method(self) -> str:
        return self.row.method or self.column.method


@dataclass(frozen=True)
class Table:
    """All cells of a table or figure on one data set.

    Attributes:
        kind: "table", "sensitivity" (Figure 2), "dynamics" (3) or "preference" (4).
        averages: printed means over the columns by row key.
        published: of other papers, by rows and pairs; also of rows that are not trained here.
        trials: as many as the paper has.
        seeds: the name from which trials' seeds derive.
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
    seeds: str = ""
    published: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)

    def cell(self, row: str, column: str) -> Cell:
        return next(c for c in self.cells if (c.row.key, c.column.key) == (row, column))


LAYOUTS: dict[str, Layout] = {**layouts.LAYOUTS, **STUDY}
TABLES = tuple(LAYOUTS)


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
    layout = LAYOUTS[name]
    files = {row.config or row.method.lower() for row in layout.rows if row.config or row.method}
    files |= {method.lower() for method in layout.column_methods}
    (dataset,) = choose("data set", [dataset], datasets(*sorted(files)))
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
        seeds=layout.seeds or name,
        published=layout.published,
    )


def _default_pairs(layout: Layout, dataset: str) -> tuple[str, ...]:
    if dataset == PAPERS_DATASET:
        return layout.pairs
    return SMALL_PAIRS[: len(layout.pairs)]


def _columns(layout: Layout, pairs: list[Pair]) -> list[Column]:
    if not layout.column_methods:
        return [Column(pair.key, pair.label, pair) for pair in pairs]
    return [
        Column(f"{method.lower()}_{pair.key}", f"{method}, {pair.label}", pair, method)
        for method in layout.column_methods
        for pair in pairs
    ]


def _cell(layout: Layout, dataset: str, row: Row, column: Column) -> Cell:
    cell = Cell(row, column, "")
    cfg_file, networks = config_of(dataset, row, column.pair, cell.method)
    number = None
    if row.key in layout.printed and column.key in layout.pairs:
        number = layout.printed[row.key][layout.pairs.index(column.key)]
    published = layout.published.get(row.key, {}).get(column.key)
    opts = (*networks, *row.opts)
    cell = replace(cell, cfg_file=cfg_file, opts=opts, printed=number, published=published)
    if row.x is not None:
        cell = replace(cell, opts=(*cell.opts, *_weights(cell, row.x)))
    if row.variant == study_layouts.SELECTION:
        held_out = study_layouts.HOLDOUT.get(dataset, study_layouts.HOLDOUT_OTHERWISE)
        cell = replace(cell, opts=(*cell.opts, "DATASET.HOLDOUT", str(held_out)))
    return cell


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
