"""Write a trained network as state dict, ONNX or torch.export; see --help."""

from __future__ import annotations

import argparse

from mdistiller.cli import ToolParser, add_imports, exit_on_error
from mdistiller.config.imports import import_methods
from mdistiller.export import FORMATS, export_checkpoint

ALL = "all"
EXAMPLES = """examples:
  python tools/export.py -m resnet8 -c output/digits/kd/student_latest -d digits \\
      --format onnx torch_export --out exported
  python tools/export.py -m resnet20 -c student_best -d cifar100 --format all --out exported

Each file is loaded again and compared with the network before it gets its name. All but the
state dict map normalised images [batch, 3, height, width] to logits [batch, classes], for any
batch size. ONNX needs: pip install onnx onnxscript onnxruntime
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(
        description="Write a trained network in formats that other programs load.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", required=True, help="name of the network")
    parser.add_argument(
        "-c", "--ckpt", required=True, help="checkpoint file, such as a run's student_latest"
    )
    parser.add_argument(
        "-d", "--dataset", default="cifar100", help="its data set, for the image size"
    )
    parser.add_argument(
        "--format", nargs="+", required=True, choices=[*FORMATS, ALL], help="one or several"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument(
        *("-bs", "--batch-size"),
        type=int,
        default=4,
        metavar="N",
        help="largest batch to compare on (default 4); the files take any",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="of -d image_folder; default: as its run's config.yaml beside the checkpoint says",
    )
    add_imports(parser)
    return parser.parse_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Write the network that the arguments name in each format asked for."""
    args = parse_arguments(argv)
    import_methods(args.imports)
    # Each format once, in the order asked for.
    formats = list(FORMATS) if ALL in args.format else list(dict.fromkeys(args.format))
    exported = export_checkpoint(
        args.model,
        args.ckpt,
        args.dataset,
        formats,
        args.out,
        batch_size=args.batch_size,
        size=args.image_size,
    )
    for file in exported:
        print(f"{file.path}  {file.size:,} bytes  max difference {file.difference:.1e}", flush=True)
