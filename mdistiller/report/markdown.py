"""The report in Markdown (with pipe tables), and in plain text for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .document import Block, Document, Heading, Listing, Picture, Table, Text


def to_markdown(document: Document) -> str:
    """Pictures are linked, so the file belongs into their folder."""
    return f"# {_escape(document.title)}\n\n{blocks_to_markdown(document.blocks)}\n"


def blocks_to_markdown(blocks: Iterable[Block]) -> str:
    """Without a title, and without a line break at the end."""
    return "\n\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Text(text):
            return _escape(text)
        case Listing(points, True):
            # A longer fence than any in the log, which could otherwise end the block.
            longest = max((len(x) for p in points for x in re.findall("`+", p)), default=0)
            fence = "`" * max(3, longest + 1)
            return "\n".join((fence, *points, fence))
        case Listing(points):
            return "\n".join(f"- {_escape(p)}" for p in points)
        case Picture(name, caption):
            return f"![{_escape(caption)}]({name}.png)"
        case Table():
            return _table(block)
    raise TypeError(f"no rendering of {type(block).__name__}")


def _table(table: Table) -> str:
    rule = [":--" if i < table.labels else "--:" for i in range(len(table.head))]
    lines = [table.head, rule, *table.rows]
    cells = [[_escape(c).replace("\n", " ") for c in line] for line in lines]
    cells[1] = rule
    return "\n".join(
        [f"**{_escape(table.caption)}**", "", *(f"| {' | '.join(c)} |" for c in cells)]
    )


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def to_text(document: Document) -> str:
    """Without pictures, for a terminal."""
    blocks = (_plain(block) for block in document.blocks)
    return "\n\n".join([document.title, *filter(None, blocks)])


def _plain(block: Block) -> str:
    match block:
        case Heading(text):
            return f"{text}\n{'-' * len(text)}"
        case Text(text):
            return text
        case Listing(points):
            return "\n".join(f"  {p}" for p in points)
        case Table():
            return _aligned(block)
    return ""


def _aligned(table: Table) -> str:
    lines = [[c.replace("\n", " ") for c in line] for line in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if i < table.labels else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rows.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join([table.caption, *rows])
