"""Images per second of the input pipelines: this project's loader and torchvision's transforms.

Random crops of padded images, flips, conversion and normalisation of CIFAR-sized images, as
training on CIFAR-100 does it. torchvision's run one image at a time in a DataLoader, as in
mdistiller, whose worker processes (--workers) need cores of their own.

example:
  python benchmarks/data.py --threads 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import _common as common
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mdistiller.cli import exit_on_error
from mdistiller.dataset.cifar100 import RECIPE


class PilImages(Dataset):
    """The same images as torchvision's CIFAR100 gives them: from numpy over PIL to a tensor."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(common.SIZE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(RECIPE.mean, RECIPE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image), self.targets[index], index


def torchvision_loader(count: int, batch: int, workers: int) -> DataLoader:
    """mdistiller's training loader over ``count`` random images."""
    data = common.random_images(count, padding=0)
    return DataLoader(
        PilImages(data.images, data.targets), batch, shuffle=True, num_workers=workers
    )


def pass_seconds(batches: Iterable[tuple[Any, ...]]) -> float:
    """Of one pass over the images."""
    now = common.clock(torch.device("cpu"))
    began = now()
    for image, *_ in batches:
        assert image.shape[1:] == (3, common.SIZE, common.SIZE)
    return now() - began


@exit_on_error
def main() -> None:
    """Measure both in turns and print images per second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="torchvision's (default: none)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Ten times slower, so a tenth of the images takes as long.
    few = max(args.batch_size, args.images // 10)
    pipelines = {
        "torchvision in a DataLoader": (
            torchvision_loader(few, args.batch_size, args.workers),
            few,
        ),
        "mdistiller.dataset": (
            common.loader(common.random_images(args.images), args.batch_size, torch.device("cpu")),
            args.images,
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(args.repeats + 1):
        for name, (batches, count) in pipelines.items():
            seconds = pass_seconds(batches)
            if number:
                rates[name].append(count / seconds)
    base = rates["torchvision in a DataLoader"]
    rows = []
    for name, own in rates.items():
        low, middle, high = common.quartiles(own)
        ratio = common.quartiles([a / b for a, b in zip(own, base, strict=True)])[1]
        rows.append((name, f"{middle:,.0f} ({low:,.0f} to {high:,.0f})", f"{ratio:.2f}"))
    facts = common.machine(torch.device("cpu"))
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "images_per_second": rates}) + "\n")
    print(common.describe(facts))
    print(common.table(("pipeline", "images/s", "ratio"), rows, args.markdown))


if __name__ == "__main__":
    main()
