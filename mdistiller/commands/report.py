"""Report on a table that tools/reproduce.py trained, or on any runs; see --help."""

from __future__ import annotations

import argparse
import sys

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.environment import environment
from mdistiller.experiments import RESULTS
from mdistiller.experiments.tables import TABLES
from mdistiller.report import Results, load_folders, load_table, write_evidence, write_report
from mdistiller.report.contents import answer_in_text

EXAMPLES = """examples:
  python tools/report.py table1 --dataset fashion_mnist     # output/table1/fashion_mnist/report/
  python tools/report.py table1 --select best --out pages
  python tools/report.py grid_a --dataset digits --records results   # from the records alone
  python tools/report.py output/digits/*                    # any runs; output/digits/report/
  python tools/report.py evidence                           # docs/results.md, of all records
  python tools/report.py env                                # versions and devices, for an issue
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(
        description="Write the report of a table, or of any runs side by side, as HTML, Markdown, "
        "LaTeX, CSV and figures. `report.py evidence` writes the pages of all records, "
        "`report.py env` prints what an issue should say about the machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="TABLE | FOLDER ... | evidence | env",
        help="a table such as table1, or folders of runs (differences are to the first)",
    )
    parser.add_argument("--dataset", help="if the table was run on several")
    parser.add_argument("--prefix", default="./output", metavar="DIR", help="default ./output")
    parser.add_argument(
        "--records",
        metavar="DIR",
        help=f"folder of records (default {RESULTS} for grids, if it has some, else the prefix)",
    )
    parser.add_argument(
        "--settings", metavar="ID", help="of the table's runs those with these overrides"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write (default: report/ in the table's folder; docs for evidence)",
    )
    parser.add_argument(
        "--select",
        choices=("last", "best"),
        default="last",
        help="which epoch's accuracy comes first (default last; both are shown)",
    )
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> Results:
    """What the command line asks for."""
    # Earlier versions had a command for folders.
    what = args.what[1:] if args.what[0] == "compare" and len(args.what) > 1 else args.what
    if what == args.what and len(what) == 1 and what[0].lower() in TABLES:
        return load_table(what[0], args.dataset, args.prefix, args.records, args.settings)
    return load_folders(what)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Write the report that the command line asks for, print its answer and where it is."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    if args.what == ["env"]:
        print(environment(), end="")
        return
    if args.what == ["evidence"]:
        print(write_evidence(args.records or RESULTS, args.out or "docs", args.select))
        return
    results = load(args)
    page = write_report(results, args.out, args.select)
    print(answer_in_text(results, args.select))
    print(", ".join(f"{count} {state}" for state, count in results.states.items()))
    print(page)


if __name__ == "__main__":
    main()
