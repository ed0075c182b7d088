"""Train configurations over several seeds and print them side by side.

Runs that are finished are not repeated, interrupted ones are continued.

example:
  python tools/compare.py --teacher configs/digits/teacher.yaml \
      --cfg configs/digits/kd.yaml configs/digits/crossbatch_kd.yaml --seeds 0 1 2 --workers 2
"""

from __future__ import annotations

import argparse

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.experiments import compare, format_table


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cfg",
        nargs="+",
        required=True,
        metavar="FILE",
        help="configurations; the first is the one that the others are compared with",
    )
    parser.add_argument("--teacher", metavar="FILE", help="configuration to train before all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="overrides for all students"
    )
    return parser.parse_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    cells = compare(
        args.cfg, args.seeds, teacher=args.teacher, opts=tuple(args.set), workers=args.workers
    )
    print(format_table(cells))
