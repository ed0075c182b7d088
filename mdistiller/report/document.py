"""The report as blocks of plain text, which HTML, Markdown, LaTeX and the terminal render."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Points, or with ``verbatim`` the lines of a log."""

    points: tuple[str, ...]
    verbatim: bool = False


@dataclass(frozen=True)
class Table:
    """A table; a blank cell is an empty string, a line break within a cell is a newline.

    Attributes:
        caption: what the numbers are and by which rule they were chosen.
        head: the names of the columns.
        rows: cells, as many in each row as in the head.
        labels: how many of the first columns hold words, not numbers.
        kinds: the kind of each row ("measured", "paper", "difference"), or empty.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong or (self.kinds and len(self.kinds) != len(self.rows)):
            raise ValueError(f"table {self.caption!r} is not rectangular")


@dataclass(frozen=True)
class Picture:
    """A figure in the files ``<name>.png`` and ``<name>.svg``."""

    name: str
    caption: str


Block = Heading | Text | Listing | Table | Picture


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]
