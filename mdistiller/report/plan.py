"""The plan of a table (``plan.json``, written by ``tools/reproduce.py``) with its runs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mdistiller.errors import DataError

from .runs import STATES, Run, read_run

KINDS = ("table", "sensitivity", "dynamics", "preference")
# The data set of the paper's numbers: on any other the task is another one.
PRINTED_DATASET = "cifar100"


@dataclass(frozen=True)
class Row:
    """A method in one variant; ``baseline`` is the key of the row it is compared with.

    ``x`` is the cross-entropy weight in a table of kind "sensitivity", else None.
    """

    key: str
    label: str
    method: str
    variant: str
    baseline: str | None
    x: float | None


@dataclass(frozen=True)
class Column:
    """A pair of teacher and student (in Figure 2b: a method)."""

    key: str
    label: str
    teacher: str
    student: str


@dataclass(frozen=True)
class Cell:
    """All trials of a row in a column; ``printed`` is the paper's top-1 in percent."""

    row: str
    column: str
    printed: float | None
    runs: tuple[Run, ...]

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "done")


@dataclass(frozen=True)
class Plan:
    """A table: its rows and columns in order, and the state of every run.

    Attributes:
        remarks: on what was left out of it.
        overrides: KEY VALUE ... that all its cells have in common, where they are known.
    """

    root: Path
    table: str
    title: str
    dataset: str
    kind: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]
    teachers: dict[str, Run]
    remarks: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @cached_property
    def _cells(self) -> dict[tuple[str, str], Cell]:
        return {(cell.row, cell.column): cell for cell in self.cells}

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {row.key: row for row in self.rows}

    def cell(self, row: Row, column: Column) -> Cell | None:
        """None where the plan has no such cell."""
        return self._cells.get((row.key, column.key))

    def done(self, row: Row, column: Column) -> tuple[Run, ...]:
        """The complete runs of a cell, in the order of the trials."""
        cell = self.cell(row, column)
        return cell.done if cell else ()

    def baseline(self, row: Row) -> Row | None:
        return self._rows.get(row.baseline) if row.baseline else None

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for cell in self.cells for run in cell.runs)

    @property
    def states(self) -> dict[str, int]:
        """How many runs are in each of :data:`~.runs.STATES`."""
        counts = Counter(run.state for run in self.runs)
        return {state: counts[state] for state in STATES}

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers are for this data set."""
        return self.dataset == PRINTED_DATASET

    @property
    def column_word(self) -> str:
        """What a column is: a method where all of them share one pair of networks."""
        networks = {(column.teacher, column.student) for column in self.columns}
        return "method" if len(self.columns) > 1 and len(networks) == 1 else "pair"


def find_root(name: str, prefix: str | Path = "./output", dataset: str | None = None) -> Path:
    """The folder of a table: ``<prefix>/<name>/<dataset>``, or ``name`` if that is a path.

    Args:
        dataset: may be left out where the table was run on one only.

    Raises:
        DataError: there is none, or several.
    """
    path, table = Path(name), Path(prefix) / name
    by_path = len(path.parts) != 1 or (path / "plan.json").exists()
    if by_path or (path.is_dir() and not table.is_dir()):
        if not (path / "plan.json").is_file():
            raise DataError(f"{path} has no plan.json; give a folder that tools/reproduce.py wrote")
        return path
    found = sorted(p.parent.name for p in table.glob("*/plan.json"))
    if dataset in found:
        return table / dataset
    if not found:
        known = ", ".join(sorted({p.parts[-3] for p in Path(prefix).glob("*/*/plan.json")}))
        raise DataError(
            f"no plan.json of {name} below {prefix} (tables there: {known or 'none'}); "
            f"run tools/reproduce.py {name} first or give --prefix"
        )
    if dataset or len(found) > 1:
        wanted = f"no {name} on {dataset}" if dataset else f"{name} is there on several data sets"
        raise DataError(f"{wanted} below {prefix}; give --dataset {' | '.join(found)}")
    return table / found[0]


def load_plan(root: str | Path) -> Plan:
    """Read ``root/plan.json`` and the state of every run that it lists.

    Raises:
        DataError: the plan is missing, damaged, or contradicts itself.
    """
    path = Path(root) / "plan.json"
    try:
        return _build(path.parent, json.loads(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path} ({reason}); run tools/reproduce.py first") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is damaged (line {error.lineno}: {error.msg}); "
            "run tools/reproduce.py with --dry-run to write it anew"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"{path} is not a plan of tools/reproduce.py ({what}); run that tool again"
        ) from None


def _build(root: Path, raw: dict[str, Any]) -> Plan:
    rows = tuple(
        Row(r["key"], r["label"], r["method"], r["variant"], r.get("baseline"), r.get("x"))
        for r in raw["rows"]
    )
    columns = tuple(
        Column(**{k: c[k] for k in Column.__dataclass_fields__}) for c in raw["columns"]
    )
    _check_names(raw["kind"], rows, columns, raw["cells"])
    cells = tuple(
        Cell(
            c["row"],
            c["column"],
            None if c.get("printed") is None else float(c["printed"]),
            tuple(sorted((read_run(root, **_run(r)) for r in c["runs"]), key=lambda r: r.trial)),
        )
        for c in raw["cells"]
    )
    teachers = {
        t["column"]: read_run(root, folder=str(t["folder"])) for t in raw.get("teachers", ())
    }
    texts = (str(raw[k]) for k in ("table", "title", "dataset", "kind"))
    return Plan(root, *texts, rows, columns, cells, teachers)


def _run(raw: dict[str, Any]) -> dict[str, Any]:
    return {"folder": str(raw["folder"]), "trial": int(raw["trial"]), "seed": int(raw["seed"])}


def _check_names(kind: str, rows: tuple, columns: tuple, cells: list[dict[str, Any]]) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    names = {row.key for row in rows}, {column.key for column in columns}
    if len(names[0]) < len(rows) or len(names[1]) < len(columns):
        raise ValueError("two rows or columns have the same key")
    places = [(c["row"], c["column"]) for c in cells]
    for row, column in places:
        if row not in names[0] or column not in names[1]:
            raise ValueError(f"cell {row}, {column} is in no row and column")
    if len(set(places)) < len(places):
        raise ValueError("a cell is there twice")
    if unknown := {row.baseline for row in rows} - names[0] - {None}:
        raise ValueError(f"no row {', '.join(sorted(unknown))} to compare with")
