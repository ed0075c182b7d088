"""What an image costs in each network: milliseconds of a forward pass, and of one with backward.

The numbers from which ``tools/reproduce.py --dry-run --speeds FILE`` estimates hours.

example:
  python benchmarks/networks.py --device cuda --json networks.json
"""

from __future__ import annotations

import argparse
import json
import statistics

import _common as common
import torch

from mdistiller.cli import exit_on_error
from mdistiller.dataset import build_model
from mdistiller.device import resolve_device
from mdistiller.experiments.tables.pairs import PAIRS


def seconds(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Of one image in a batch: "forward" in eval mode without gradients, and "backward" with both.

    Medians over the repeats, after one that is not counted.
    """
    torch.manual_seed(0)
    layout = torch.channels_last
    model = build_model("cifar100", name, common.CLASSES).to(device).to(memory_format=layout)
    images = torch.randn(args.batch_size, 3, common.SIZE, common.SIZE, device=device)
    images = images.contiguous(memory_format=layout)
    now, found = common.clock(device), {"forward": [], "backward": []}
    for number in range(args.repeats + 1):
        for way, times in found.items():
            model.train(way == "backward")
            began = now()
            with torch.set_grad_enabled(way == "backward"):
                for _ in range(args.steps):
                    total = model(images)[0].sum()
                    if way == "backward":
                        total.backward()
            if number:
                times.append((now() - began) / args.steps / args.batch_size)
    return {way: statistics.median(times) for way, times in found.items()}


@exit_on_error
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", metavar="NAME", help="(default: those of Table 1)")
    add("--batch-size", type=int, default=64)
    add("--repeats", type=int, default=5)
    add("--steps", type=int, default=5, help="passes in a repeat (default 5)")
    args = common.start(parser)
    device = resolve_device(args.device)
    of_pairs = (name for pair in PAIRS.values() for name in (pair.teacher, pair.student))
    names = args.networks or dict.fromkeys(of_pairs)
    found = {name: seconds(name, args, device) for name in names}
    facts = common.machine(device)
    result = {"machine": facts, "dataset": "cifar100", "batch_size": args.batch_size}
    if args.json:
        args.json.write_text(json.dumps({**result, "seconds_per_image": found}, indent=1) + "\n")
    rows = [
        (name, *(f"{own[way] * 1e3 * args.batch_size:.2f}" for way in ("forward", "backward")))
        for name, own in found.items()
    ]
    print(common.describe(facts))
    print(f"a batch of {args.batch_size}, milliseconds\n")
    header = ("network", "forward", "forward and backward")
    print(common.table(header, rows, args.markdown))


if __name__ == "__main__":
    main()
