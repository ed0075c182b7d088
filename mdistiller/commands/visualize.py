"""Draw t-SNE maps and logit correlations of a student and its teacher; see --help."""

from __future__ import annotations

import argparse

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.engine.cfg import load_cfg
from mdistiller.report.visualize import visualize

EXAMPLES = """examples:
  python tools/visualize.py --cfg configs/digits/kd.yaml \\
      --student-ckpt output/digits/kd/student_latest --out pictures/kd
  python tools/visualize.py --cfg output/digits/crossbatch_kd/config.yaml \\
      --student-ckpt output/digits/crossbatch_kd/student_best --out pictures/crossbatch_kd \\
      --images 500 SOLVER.DEVICE cpu
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(
        description="Compare the features and the logits of a student with its teacher's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the YAML file of the run")
    parser.add_argument(
        "--student-ckpt", required=True, metavar="FILE", help="such as the run's student_latest"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--images",
        type=int,
        default=2000,
        metavar="N",
        help="validation images, drawn at random (default 2000)",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of configuration keys"
    )
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    pictures = visualize(load_cfg(args.cfg, args.opts), args.student_ckpt, args.out, args.images)
    print(f"{pictures.tsne}: features of {pictures.images} validation images")
    print(
        f"{pictures.correlation}: mean absolute difference of the logit correlations "
        f"{pictures.mean_difference:.4f}"
    )
