"""The command line of ``tools/train.py``; also ``python -m mdistiller.commands.train``."""

from __future__ import annotations

import argparse

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.config import CFG, load_cfg
from mdistiller.console import output_is_optional
from mdistiller.engine.run import run_training
from mdistiller.engine.runtime.signals import end_on_signals
from mdistiller.listing import list_everything

EXAMPLES = """examples:
  python tools/train.py --list
  python tools/train.py --cfg configs/digits/teacher.yaml
  python tools/train.py --cfg configs/digits/crossbatch_kd.yaml EXPERIMENT.SEED 1
  python tools/train.py --cfg configs/cifar100/crossbatch/kd_res56_res20.yaml --resume
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of ``tools/train.py``, checked as far as argparse can."""
    parser = ToolParser(
        description="Train a student as a configuration file says.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--cfg", metavar="FILE", help="the YAML file of the run")
    what.add_argument(
        "--list", action="store_true", help="print all distillers, trainers, models and data sets"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run from its latest checkpoint, or start it if there is none",
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="with --resume: go on although the configuration is not the checkpoint's",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run, also on CUDA, at some cost in speed; short for "
        "SOLVER.DETERMINISTIC True",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of configuration keys"
    )
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.list:
        CFG.clone().merge_from_list(args.opts)  # EXPERIMENT.IMPORTS adds to the lists
        print(list_everything())
        return
    output_is_optional()
    end_on_signals()
    deterministic = ["SOLVER.DETERMINISTIC", "True"] if args.deterministic else []
    cfg = load_cfg(args.cfg, [*args.opts, *deterministic])
    run_training(cfg, args.resume, args.allow_changes)


if __name__ == "__main__":
    main()
