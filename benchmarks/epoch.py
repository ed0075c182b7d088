"""Whole epochs: data, training, validation and checkpoints, mdistiller's way and this project's.

Small epochs of noise images, taking turns in one process. mdistiller's way: PIL images through
torchvision's transforms in a DataLoader, a plain vanilla step, metrics read every step, one file
at the end. This project's: ``trainer.train()`` over its own loader, with everything it writes.

example:
  python benchmarks/epoch.py --pair resnet56 resnet20 --images 2560
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _common as common
import torch
from _variants import BF16, COMPILE, RECREATION, RecreatedStep
from data import PilImages
from torch.utils.data import DataLoader

from mdistiller.cli import exit_on_error
from mdistiller.device import resolve_device
from mdistiller.engine.meters import validate

WAYS = {
    "vanilla": ("", ()),
    "crossbatch": ("CROSSBATCH_", ()),
    "vanilla bf16 compiled": ("", (*BF16, *COMPILE)),
    "crossbatch bf16 compiled": ("CROSSBATCH_", (*BF16, *COMPILE)),
}


def recreated_epoch(args: argparse.Namespace, folder: str) -> Callable[[], None]:
    """mdistiller's way, written anew; the networks go on training from one call to the next."""
    device = resolve_device(args.device)
    train, val = (common.random_images(n, padding=0) for n in (args.images, args.val_images))
    loaders = [
        DataLoader(
            PilImages(data.images, data.targets),
            args.batch_size,
            shuffle=data is train,
            num_workers=args.workers,
        )
        for data in (train, val)
    ]
    step = RecreatedStep(common.config(args.pair, args.method, args.device), loaders[0], device)

    def run() -> None:
        step.distiller.train()
        for _ in range(len(loaders[0])):
            step()
        validate(loaders[1], step.distiller)
        torch.save(step.distiller.state_dict(), Path(folder) / "latest")

    return run


def our_epoch(args: argparse.Namespace, folder: str, way: str) -> Callable[[], None]:
    """This project's way; every call is a run of one epoch, from new weights."""
    prefix, opts = WAYS[way]
    if prefix:
        opts = (*opts, "SOLVER.TRAINER", "crossbatch")
    cfg = common.config(
        args.pair,
        prefix + args.method,
        args.device,
        *("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [], "LOG.PREFIX", folder),
        *opts,
    )
    device = resolve_device(args.device)
    train = common.loader(common.random_images(args.images), args.batch_size, device)
    val_images = common.random_images(args.val_images, padding=0)
    val = common.loader(val_images, args.batch_size, device, train=False)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            common.trainer(cfg, train, val=val).train()

    return run


@exit_on_error
def main() -> None:
    """Measure all in turns and print seconds per epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pair", nargs=2, default=["resnet56", "resnet20"], metavar=("TEACHER", "STUDENT"))
    add("--method", default="KD")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    add("--images", type=int, default=2560, help="training images (default 2560)")
    add("--val-images", type=int, default=512)
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, default=2, help="of mdistiller's loaders (default 2)")
    add("--repeats", type=int, default=3)
    args = common.start(parser)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        epochs = {RECREATION: recreated_epoch(args, folder)}
        epochs |= {way: our_epoch(args, f"{folder}/{way}", way) for way in args.ways}
        for number in range(args.repeats + 1):
            for name, run in epochs.items():
                began = time.perf_counter()
                run()
                if number:
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
    rows = []
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[RECREATION], strict=True)]
        cells = (common.quartiles(own), common.quartiles(ratios))
        rows.append((name, *(f"{m:.2f} ({low:.2f} to {high:.2f})" for low, m, high in cells)))
    facts = common.machine(resolve_device(args.device))
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "seconds": seconds}) + "\n")
    print(common.describe(facts))
    print(f"{args.method}, {' to '.join(args.pair)}, {args.images} + {args.val_images} images")
    print(common.table(("epoch", "seconds", f"/ {RECREATION}"), rows, args.markdown))


if __name__ == "__main__":
    main()
