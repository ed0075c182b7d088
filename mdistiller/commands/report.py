"""Report on a table that tools/reproduce.py trained, or compare any runs; see --help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.experiments import RESULTS, STUDY
from mdistiller.report import (
    Plan,
    compare_runs,
    find_root,
    load_plan,
    load_recorded,
    write_evidence,
    write_report,
)

EXAMPLES = """examples:
  python tools/report.py table1 --dataset fashion_mnist     # output/table1/fashion_mnist/report/
  python tools/report.py output/table1/digits --out pages --select best
  python tools/report.py grid_a --dataset digits --records results   # from the records alone
  python tools/report.py evidence                                    # docs/evidence.md
  python tools/report.py compare output/digits/kd output/digits/crossbatch_kd --out pages
"""


def parse_table(argv: list[str]) -> argparse.Namespace:
    """The command line of a table's report."""
    parser = ToolParser(
        description="Write the report of a table from its result folders, as HTML, Markdown, "
        "LaTeX, CSV and figures. `report.py compare RUN RUN ...` puts runs side by side, "
        "`report.py evidence` makes one page of all records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help="such as table1, or the folder with its plan.json")
    parser.add_argument("--dataset", help="if the table was run on several")
    parser.add_argument("--prefix", default="./output", metavar="DIR", help="default ./output")
    parser.add_argument(
        "--records",
        metavar="DIR",
        help=f"read the records there instead of the folders (default for grids: {RESULTS}, if it "
        "has some)",
    )
    parser.add_argument(
        "--settings", metavar="ID", help="of the records, the runs with these overrides"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write (default: report/ in the table's folder)"
    )
    parser.add_argument(
        "--select",
        choices=("last", "best"),
        default="last",
        help="which epoch's accuracy comes first (default last; both are shown)",
    )
    return parser.parse_args(argv)


def parse_compare(argv: list[str]) -> argparse.Namespace:
    """The command line of a comparison of runs."""
    parser = ToolParser(
        prog="report.py compare",
        description="Put runs side by side: configurations, accuracies, times, weights.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders; differences are to the first"
    )
    parser.add_argument("--out", metavar="DIR", help="write a page with the curves there, too")
    return parser.parse_args(argv)


def parse_evidence(argv: list[str]) -> argparse.Namespace:
    """The command line of the page of all records."""
    parser = ToolParser(
        prog="report.py evidence",
        description="Write evidence.md, and its figures into evidence/, from all records.",
    )
    parser.add_argument("--records", default=RESULTS, metavar="DIR", help=f"(default {RESULTS})")
    parser.add_argument("--out", default="docs", metavar="DIR", help="(default docs)")
    return parser.parse_args(argv)


def open_plan(args: argparse.Namespace) -> Plan:
    """The table from its records or from its folders."""
    records = args.records
    if records is None and args.table in STUDY and any(Path(RESULTS).glob(f"{args.table}-*")):
        records = RESULTS
    if records is None:
        return load_plan(find_root(args.table, args.prefix, args.dataset))
    return load_recorded(records, args.table, args.dataset, args.prefix, args.settings)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Write the report that the command line asks for, and print where it is."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        args = parse_compare(argv[1:])
        print(compare_runs(args.runs, args.out))
        return
    if argv[:1] == ["evidence"]:
        args = parse_evidence(argv[1:])
        print(write_evidence(args.records, args.out))
        return
    args = parse_table(argv)
    plan = open_plan(args)
    page = write_report(plan, args.out, args.select)
    print(", ".join(f"{count} {state}" for state, count in plan.states.items()))
    print(page)
