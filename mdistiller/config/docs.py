"""The tables of docs/config.md, made of the table of settings."""

from __future__ import annotations

from typing import Any

from .core import CORE
from .table import TABLE

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_tables() -> str:
    """Markdown: a table for each group of the core and for each method, in alphabetical order."""
    nodes = dict.fromkeys(key.partition(".")[0] for key in TABLE)
    order = [*CORE, *sorted(node for node in nodes if node not in CORE)]
    return "\n\n".join(_table(node) for node in order) + "\n"


def _table(node: str) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, setting in TABLE.items():
        if key.startswith(f"{node}."):
            must = f"; must be {setting.rule.words}" if setting.rule else ""
            rows.append(f"| `{key}` | {_shown(setting.default)} | {setting.doc}{must} |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if default == "":
        return "empty"
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def with_tables(page: str) -> str:
    """The text of a page with the tables between its marks as they are now.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{begin}\n{settings_tables()}{end}{after}"
