"""Train a student as a configuration file says.

Examples:
    python tools/train.py --cfg configs/digits/teacher.yaml
    python tools/train.py --cfg configs/digits/crossbatch_kd.yaml EXPERIMENT.SEED 1
    python tools/train.py --cfg configs/cifar100/crossbatch/kd_res56_res20.yaml --resume
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdistiller.cli import exit_on_error  # noqa: E402
from mdistiller.engine.cfg import CFG  # noqa: E402
from mdistiller.engine.run import run_training  # noqa: E402


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="the YAML file of the run")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run after its last complete epoch"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of configuration keys"
    )
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main() -> None:
    args = parse_arguments()
    cfg = CFG.clone()
    cfg.merge_from_file(args.cfg)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    run_training(cfg, args.opts, resume=args.resume)


if __name__ == "__main__":
    main()
