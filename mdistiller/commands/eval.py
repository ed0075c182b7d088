"""Evaluate a network on a validation set; see --help."""

from __future__ import annotations

import argparse
import json

from mdistiller.cli import ToolParser, add_imports, exit_on_error
from mdistiller.config.imports import import_methods
from mdistiller.engine.run import evaluate_checkpoint

EXAMPLES = """examples:
  python tools/eval.py -m resnet8 -c output/digits/kd/student_best -d digits
  python tools/eval.py -m resnet20 -c output/image_folder/kd/student_latest -d image_folder
  python tools/eval.py -m resnet56              # the published CIFAR-100 teacher
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(
        description="Top-1, top-5 and loss of a network on the validation images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", required=True, help="name of the network")
    parser.add_argument(
        "-c", "--ckpt", default="pretrain", help="checkpoint file; pretrain: the published one"
    )
    parser.add_argument("-d", "--dataset", default="cifar100", help="default: %(default)s")
    parser.add_argument("-bs", "--batch-size", type=int, default=64)
    parser.add_argument("--root", default="", help="folder of the data (DATASET.ROOT)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides, such as DATASET.IMAGE_SIZE 64"
    )
    add_imports(parser)
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Print the accuracy of the network that the arguments name."""
    args = parse_arguments(argv)
    import_methods(args.imports)
    ckpt = "" if args.ckpt == "pretrain" else args.ckpt
    result = evaluate_checkpoint(
        args.model,
        ckpt,
        args.dataset,
        args.batch_size,
        root=args.root,
        device=args.device,
        opts=args.opts,
    )
    print(
        f"{args.model} on {args.dataset}: top-1 {result['top1']:.2f}, "
        f"top-5 {result['top5']:.2f}, loss {result['loss']:.4f}"
    )
    print(json.dumps(result))
