"""Asks for a table: which run stands in which cell, by what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mdistiller import config
from mdistiller.errors import ConfigError
from mdistiller.seeding import derive_seed

from .derive import derive, scaled_epochs
from .schema import TEACHER_FILE, Query, Record, settings_of
from .tables import Cell, Table, build_table
from .tables.layouts import Derived

SEED = "EXPERIMENT.SEED"

# The same table is asked for again and again while its runs end.
load_cfg = cache(config.load_cfg)


@dataclass(frozen=True)
class Place:
    """One trial of a cell.

    Attributes:
        id: the run's; None while a run whose numbers it is made of is not done.
        opts: overrides KEY VALUE ... of the cell's configuration file.
        source: id of the run that it is made of, if there is one.
    """

    cell: Cell
    trial: int
    seed: int
    id: str | None
    opts: tuple[str, ...] = ()
    source: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.cell.row.key, self.cell.column.key, self.trial

    @property
    def label(self) -> str:
        return f"{self.cell.row.key}-{self.cell.column.key}-t{self.trial}"


def trial_seed(table: str, pair: str, trial: int) -> int:
    """EXPERIMENT.SEED of a trial: the same for all methods and weightings on a pair.

    The same initial student and the same order and augmentation of its batches make the
    differences between them paired.
    """
    return derive_seed(0, table, pair, trial) % 2**31


def table_of(query: Query) -> Table:
    """The part of a table that was asked for."""
    return build_table(query.table, query.dataset, query.pairs, query.methods)


def places(query: Query, done: Mapping[str, Record]) -> list[Place]:
    """Every trial of every cell, trial by trial, so that a plan cut short is one of fewer trials.

    Args:
        query: ``teachers`` may hold the files' whole paths.
        done: finished runs by their id (:func:`~.records.by_id`), of whose numbers others are
            made.

    Raises:
        ConfigError: an unknown name, or a row is made of runs that are not asked for.
    """
    table = table_of(query)
    found: list[Place] = []
    plain = [cell for cell in table.cells if cell.row.derived is None]
    for cell in plain:
        found += _places_of(table, cell, query)
    sources = {place.key: place for place in found}
    for cell in table.cells:
        if cell.row.derived is not None:
            found += _derived_places(table, cell, cell.row.derived, query, sources, done)
    order = {column.key: number for number, column in enumerate(table.columns)}
    return sorted(found, key=lambda place: (place.trial, order[place.cell.column.key]))


def cell_opts(query: Query, cell: Cell) -> tuple[str, ...]:
    """The overrides that make a cell's configuration, but for the seed."""
    scaled: tuple[str, ...] = ()
    if query.epochs is not None:
        scaled = scaled_epochs(load_cfg(cell.cfg_file, cell.opts), query.epochs)
    file = query.teachers.get(cell.column.pair.teacher)
    teacher = (TEACHER_FILE, file) if file else ()
    return (*cell.opts, *scaled, *query.overrides, *teacher)


def _places_of(table: Table, cell: Cell, query: Query) -> list[Place]:
    opts = cell_opts(query, cell)
    settings = settings_of(load_cfg(cell.cfg_file, opts))
    return [
        _place(cell, trial, seed, opts, settings) for trial, seed in _trials(table, cell, query)
    ]


def _derived_places(
    table: Table,
    cell: Cell,
    derived: Derived,
    query: Query,
    sources: Mapping[tuple[str, str, int], Place],
    done: Mapping[str, Record],
) -> list[Place]:
    opts, found = cell_opts(query, cell), []
    cfg = load_cfg(cell.cfg_file, opts)
    for trial, seed in _trials(table, cell, query):
        source = sources.get((derived.source, cell.column.key, trial))
        if source is None:
            raise ConfigError(
                f"row {cell.row.key} is made of the runs of row {derived.source}; add "
                f"{derived.source} to --methods"
            )
        record = None if source.id is None else done.get(source.id)
        if record is None:
            found.append(Place(cell, trial, seed, None, source=source.id))
            continue
        own = (*opts, *derive(derived.how, record, cfg))
        settings = settings_of(load_cfg(cell.cfg_file, own))
        found.append(_place(cell, trial, seed, own, settings, source.id))
    return found


def _trials(table: Table, cell: Cell, query: Query) -> list[tuple[int, int]]:
    pair = cell.column.pair.key
    trials = range(query.trials or table.trials)
    return [(trial, trial_seed(table.seeds, pair, trial)) for trial in trials]


def _place(
    cell: Cell,
    trial: int,
    seed: int,
    opts: Sequence[str],
    settings: dict[str, Any],
    source: str | None = None,
) -> Place:
    """The trial whose configuration has ``settings`` but for its seed."""
    own = (*opts, SEED, str(seed))
    return Place(cell, trial, seed, config.identity_of(settings | {SEED: seed}), own, source)
