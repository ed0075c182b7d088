"""Students that share batches and teacher, against students alone.

First a step: a student of a fleet of exact cross-batch students beside the same student alone and
beside a vanilla step as mdistiller takes it (written anew), taking turns as in step.py; the
milliseconds of a fleet are those of a round divided by its students. Then whole cells: the ten
rows of Table 1 on noise images, once as a fleet and once one after the other, with everything that
a run reads, validates and writes (but not the start of a process, of which runs alone have one
each).

example:
  python benchmarks/fleet.py --pair resnet56 resnet20 --size 10 --json fleet.json
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
from typing import Any
from unittest import mock

import _common as common
import torch
from _variants import BF16, OWN_PROCESS, RECREATION, VARIANTS, Variant
from step import measure, ratios, spread, step_cells, summary

from mdistiller.cli import exit_on_error
from mdistiller.dataset import build_model
from mdistiller.device import resolve_device
from mdistiller.engine.cfg import experiment_name
from mdistiller.engine.run import run_training
from mdistiller.engine.runtime.host import keep_freed_memory
from mdistiller.experiments.fleet.fleet import Fleet, Member

METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")
PRECISIONS = {"fp32": (), "bf16": BF16}


def add_variants(args: argparse.Namespace) -> list[str]:
    """The names of the steps to compare, those of fleets among them."""
    teacher = common.teacher_cost(args.pair)
    cost = 8 + teacher / args.size - teacher
    names = [RECREATION, *[OWN_PROCESS] * (not args.cpu_time)]
    for precision in args.precisions:
        suffix = " bf16" * (precision == "bf16")
        name = f"crossbatch{suffix}, fleet of {args.size}"
        VARIANTS[name] = Variant(
            cost,
            vanilla=f"vanilla{suffix}",
            crossbatch=True,
            opts=PRECISIONS[precision],
            cycle=args.size,
            fleet=args.size,
        )
        names += [f"vanilla{suffix}", f"crossbatch{suffix}", name]
    return names


def cells(args: argparse.Namespace, folder: Path, precision: str) -> dict[str, Callable[[], None]]:
    """Ways to train Table 1's rows of one pair and trial for one short epoch."""
    torch.manual_seed(0)
    teacher = folder / "teacher"
    torch.save(build_model("cifar100", args.pair[0], common.CLASSES).state_dict(), teacher)
    count = 0

    def members() -> list[Member]:
        nonlocal count
        count += 1
        made = []
        for method in METHODS:
            for prefix, trainer in (("", "base"), ("CROSSBATCH_", "crossbatch")):
                cfg = common.config(
                    args.pair,
                    prefix + method,
                    args.device,
                    *("SOLVER.TRAINER", trainer, "SOLVER.BATCH_SIZE", args.batch_size),
                    *("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", []),
                    *("DISTILLER.TEACHER_CKPT", str(teacher), *PRECISIONS[precision]),
                    *("LOG.PREFIX", str(folder / str(count)), "EXPERIMENT.NAME", prefix + method),
                )
                made.append(Member(cfg, out=io.StringIO()))
        return made

    def together() -> None:
        fleet = members()
        Fleet(fleet).train()
        for member in fleet:
            assert member.result, f"{experiment_name(member.cfg)}: {member.error}"

    def one_by_one() -> None:
        for member in members():
            with contextlib.redirect_stdout(member.out):
                run_training(member.cfg)

    return {"one by one": one_by_one, "fleet": together}


def measure_cells(args: argparse.Namespace, precision: str) -> dict[str, list[float]]:
    """Seconds for all cells, one figure a round, after one round of warm-up."""
    device = resolve_device(args.device)

    def noise(cfg: Any) -> tuple[Any, Any, int, int]:
        train, val = common.random_images(args.images), common.random_images(args.val_images, 0)
        loaders = (
            common.loader(data, args.batch_size, device, train=data is train)
            for data in (train, val)
        )
        return (*loaders, args.images, common.CLASSES)

    now = common.clock(device, args.cpu_time)
    seconds: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("mdistiller.engine.run.get_dataset", noise),
    ):
        ways = cells(args, Path(folder), precision)
        for number in range(args.cell_repeats + 1):
            for name, run in ways.items():
                began = now()
                run()
                if number:
                    seconds.setdefault(name, []).append(now() - began)
    return seconds


def step_table(rows: list[dict[str, Any]], markdown: bool) -> str:
    """Steps of all variants."""
    header = ("a student's step", "ms", *ratios())
    return common.table(header, [step_cells(row) for row in rows], markdown)


def cell_table(found: dict[str, dict[str, list[float]]], markdown: bool) -> str:
    """Cells per hour of all ways."""
    count, lines = 2 * len(METHODS), []
    for precision, seconds in found.items():
        for name, own in seconds.items():
            ratios = [b / a for a, b in zip(own, seconds["one by one"], strict=True)]
            low, middle, high = (3600 * count / s for s in common.quartiles(own)[::-1])
            cell = f"{middle:.0f} ({low:.0f} to {high:.0f})"
            lines.append((precision, name, cell, spread(common.quartiles(ratios), 2)))
    return common.table(("precision", "way", "cells an hour", "/ one by one"), lines, markdown)


def parse() -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pair", nargs=2, default=["resnet56", "resnet20"], metavar=("TEACHER", "STUDENT"))
    add("--method", default="KD", help="of the students whose steps are timed (default KD)")
    add("--size", type=int, default=10, help="students of that fleet (default 10)")
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    add("--batch-size", type=int, default=64)
    add("--repeats", type=int, default=10, help="rounds (default 10)")
    add("--steps", type=int, default=3, help="steps of a variant in a round (default 3)")
    add("--cell-repeats", type=int, default=3, help="rounds of whole cells, 0 for none (default 3)")
    add("--images", type=int, default=640, help="training images of a cell (default 640)")
    add("--val-images", type=int, default=128)
    add("--cpu-time", action="store_true", help="CPU seconds: for one thread on a busy machine")
    common.add_options(parser)
    args = parser.parse_args()
    if args.size < 2:
        parser.error(f"--size must be 2 or greater, not {args.size}")
    return args


@exit_on_error
def main() -> None:
    """Measure and print."""
    args = parse()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    args.variants = add_variants(args)
    began = time.strftime("%Y-%m-%d %H:%M")
    times = measure(args, device, args.method)
    rows = summary(times, args.pair)
    found = {}
    if args.cell_repeats:
        found = {precision: measure_cells(args, precision) for precision in args.precisions}
    facts = common.machine(device)
    if args.json:
        result = {"machine": facts, "began": began, "pair": args.pair, "size": args.size}
        result |= {"steps": rows, "rounds_ms": times, "cells_seconds": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    clock = "CPU seconds" if args.cpu_time else "wall time"
    print(common.describe(facts))
    print(f"{args.method}, {' to '.join(args.pair)}, batch {args.batch_size}, {clock}")
    print("median (quartiles)\n")
    print(step_table(rows, args.markdown))
    if found:
        print(f"\n{args.images} + {args.val_images} images a cell, Table 1's ten rows\n")
        print(cell_table(found, args.markdown))


if __name__ == "__main__":
    main()
