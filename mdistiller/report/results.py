"""A table with its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mdistiller.experiments.tables import Column
from mdistiller.experiments.tables.layouts import Row
from mdistiller.experiments.tables.published import Number

from .frame import STATES, common, curve, dynamics_node

RULES = ("last", "best")
# The data set of the paper's numbers: on any other the task is another one.
PRINTED_DATASET = "cifar100"
# The name of a table made of any folders.
FOLDERS = "folders"

_PAIR = ["column", "trial", "seed"]
_COMPARED = [*_PAIR, "last_top1", "best_top1", "epochs", "machine", "history"]


@dataclass(frozen=True)
class Results:
    """The rows and columns of a table, and a frame of its runs.

    Attributes:
        root: the folder of the table; a report goes into ``report/`` in it.
        rows, columns: in order; a row's ``baseline`` is the key of the one it is compared with.
        runs: as :mod:`~.frame` has them, with the columns ``row``, ``column`` (keys) and
            ``trial``, in the order of the table.
        printed: the paper's top-1 in percent by keys of row and column.
        published: other papers' numbers with their protocols, by keys of row and column.
        remarks: on what was left out.
        settings: id of the overrides that all runs have in common.
        commands: what trains these runs and no more, in order.
    """

    root: Path
    name: str
    title: str
    dataset: str
    kind: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    runs: pd.DataFrame
    printed: Mapping[tuple[str, str], float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    settings: str = ""
    commands: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)

    @cached_property
    def done(self) -> pd.DataFrame:
        """The complete runs, which alone count."""
        return self.runs[self.runs["state"] == "done"]

    @cached_property
    def _rows(self) -> dict[str, pd.DataFrame]:
        return {str(row): runs for row, runs in self.done.groupby("row", sort=False)}

    def row(self, key: str) -> pd.DataFrame:
        """The complete runs of a row, by columns and trials."""
        return self._rows.get(key, self.done.iloc[:0])

    @cached_property
    def _pairs(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

    def paired(self, row: str, other: str) -> pd.DataFrame:
        """The trials that both rows have completed with the same seed, columns of other in _2."""
        if (row, other) not in self._pairs:
            mine, theirs = (self.row(key)[_COMPARED] for key in (row, other))
            self._pairs[row, other] = mine.merge(theirs, on=_PAIR, suffixes=("", "_2"))
        return self._pairs[row, other]

    @cached_property
    def _cells(self) -> dict[tuple[str, str], pd.DataFrame]:
        cells = self.done.groupby(["row", "column"], sort=False)
        return {(str(row), str(column)): runs for (row, column), runs in cells}

    def cell(self, row: str, column: str) -> pd.DataFrame:
        """The complete runs of a cell, in the order of the trials."""
        return self._cells.get((row, column), self.done.iloc[:0])

    def top1(self, row: str, column: str, rule: str) -> np.ndarray:
        """Test top-1 in percent of a cell's runs by the last or the best epoch, [trials]."""
        return self.cell(row, column)[f"{rule}_top1"].to_numpy()

    def curves(self, row: str, column: str, key: str) -> np.ndarray | None:
        """What a cell's runs logged of ``key`` in each epoch [trials, epochs]; None: nothing.

        Args:
            key: of an entry of metrics.jsonl, or of the weights and cosines in it.
        """
        found = []
        for history in self.cell(row, column)["history"]:
            path = (key,) if key in history[-1] else (dynamics_node(history), key)
            found.append(curve(history, *path))
        found = [values for values in found if not np.isnan(values).all()]
        return common(found) if found else None

    @cached_property
    def by_key(self) -> dict[str, Row]:
        return {row.key: row for row in self.rows}

    def baseline(self, row: Row) -> Row | None:
        return self.by_key.get(row.baseline) if row.baseline else None

    @property
    def compared(self) -> list[tuple[Row, Row]]:
        """Every row that has a baseline, with it."""
        return [(row, other) for row in self.rows if (other := self.baseline(row))]

    @property
    def states(self) -> dict[str, int]:
        """How many runs are in each of :data:`~.frame.STATES`."""
        counts = self.runs["state"].value_counts().reindex(STATES, fill_value=0)
        return {state: int(counts[state]) for state in STATES}

    @property
    def comparable(self) -> bool:
        """Whether printed and published numbers are for this data set."""
        return self.dataset == PRINTED_DATASET

    @property
    def column_word(self) -> str:
        """What a column is: a method where all of them share one pair of networks."""
        pairs = {column.pair for column in self.columns}
        return "method" if len(self.columns) > 1 and len(pairs) == 1 else "pair"


def in_order(runs: pd.DataFrame, rows: Sequence[Row], columns: Sequence[Column]) -> pd.DataFrame:
    """Runs by the table's rows, columns and trials; the index counts them."""
    order = {row.key: number for number, row in enumerate(rows)}
    across = {column.key: number for number, column in enumerate(columns)}
    places = runs["row"].map(order), runs["column"].map(across), runs["trial"]
    by_place = pd.concat(places, axis=1).sort_values(["row", "column", "trial"]).index
    return runs.loc[by_place].reset_index(drop=True)
