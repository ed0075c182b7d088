"""Print every setting and every method as Markdown tables, or bring those of a page up to date.

``python -m mdistiller.commands.settings [--write docs/config.md docs/methods.md README.md]``
"""

from __future__ import annotations

from pathlib import Path

from mdistiller import engine  # noqa: F401  (registers what declares settings)
from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.config.docs import settings_tables, with_tables
from mdistiller.listing import methods_table

# By the names of their marks in a page.
TABLES = {"settings": settings_tables, "method-table": methods_table}


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    parser = ToolParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", nargs="+", metavar="PAGE", help="pages whose tables are to be renewed"
    )
    args = parser.parse_args(argv)
    if args.write is None:
        print("\n".join(make() for make in TABLES.values()), end="")
        return
    for page in map(Path, args.write):
        page.write_text(with_tables(page.read_text(encoding="utf-8"), TABLES), encoding="utf-8")


if __name__ == "__main__":
    main()
