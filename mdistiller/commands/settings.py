"""Print every setting as a Markdown table, or bring those of docs/config.md up to date.

``python -m mdistiller.commands.settings [--write docs/config.md]``
"""

from __future__ import annotations

from pathlib import Path

from mdistiller import engine  # noqa: F401  (registers what declares settings)
from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.config.docs import settings_tables, with_tables


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    parser = ToolParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", metavar="PAGE", help="the page whose tables are to be renewed")
    args = parser.parse_args(argv)
    if args.write is None:
        print(settings_tables(), end="")
        return
    page = Path(args.write)
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
