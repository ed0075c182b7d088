"""Tables in pages of docs that a program makes, such as docs/config.md's of the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .core import CORE
from .table import TABLE


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


def with_tables(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with the tables between its marks as they are now.

    Args:
        tables: what makes the table between the marks ``<!-- NAME: begin -->`` and
            ``<!-- NAME: end -->``, by name.

    Raises:
        ValueError: the page has no marks, or not both of a pair.
    """
    marked = [name for name in tables if _marks(name)[0] in page]
    if not marked:
        raise ValueError(
            f"the page has none of the marks {', '.join(_marks(n)[0] for n in tables)}"
        )
    for name in marked:
        begin, end = _marks(name)
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page lacks the mark {end}")
        page = f"{before}{begin}\n{tables[name]()}{end}{after}"
    return page


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
