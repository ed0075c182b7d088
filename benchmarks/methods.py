"""What a training step of every method costs against KD's, vanilla and with cross-batch weighting.

All take turns, a step each, so that load and clock hit them alike; a step's cost is the median of
its times over that of KD's. On a CPU the time is this process's CPU time, which other processes
lengthen, for they share caches, but less than the wall time. Random images, random teachers, one
batch again and again: the input pipeline is left out.

example:
  python benchmarks/methods.py --write mdistiller/step_costs.json
  python benchmarks/methods.py --methods KD RKD CRD --pair resnet56 resnet20
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import (
    CLASSES,
    SIZE,
    clock,
    config,
    describe,
    machine,
    quartiles,
    random_images,
    table,
)

from mdistiller.cli import exit_on_error
from mdistiller.config.cfg import CROSSBATCH_PREFIX
from mdistiller.dataset import build_model, contrastive_settings
from mdistiller.dataset._array import ArrayLoader
from mdistiller.dataset.cifar100 import RECIPE
from mdistiller.device import resolve_device
from mdistiller.distillers import distiller_dict
from mdistiller.distillers._common import probe
from mdistiller.engine import trainer_dict
from mdistiller.engine.run import assemble_distiller
from mdistiller.engine.runtime.host import keep_freed_memory

IMAGES = 2048
# Options without which a method has no second loss, and forms that cost otherwise.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "SIMKD": ("SIMKD.CE_WEIGHT", 1.0),
    "CRD": ("CRD.NCE.K", 1024),
}
TWO_VIEWS = ", two views"


def names(wanted: list[str]) -> list[str]:
    """Both forms of each method, KD's first, MLKD's also with two views."""
    plain = [n for n in distiller_dict if not n.startswith(CROSSBATCH_PREFIX)]
    chosen = dict.fromkeys(["KD", *(n for n in plain if not wanted or n in wanted)])
    both = [p + n for n in chosen for p in ("", CROSSBATCH_PREFIX) if p + n in distiller_dict]
    return [*both, *(n + TWO_VIEWS for n in both if n.endswith("MLKD"))]


def build(name: str, pair: tuple[str, str], batch: int, device: str) -> tuple[Any, Any]:
    """The trainer of a method, and the batch of its steps."""
    method, _, views = name.partition(",")
    plain = method.removeprefix(CROSSBATCH_PREFIX)
    own = OPTIONS.get(plain, ())
    trainer = "base" if method == plain else "crossbatch"
    if getattr(distiller_dict[method], "needs_contrast", False) and trainer == "base":
        trainer = "crd"
    torch.manual_seed(0)
    teacher, student = (build_model("cifar100", n, CLASSES) for n in pair)
    if plain == "CRD":
        dims = [probe(net, (SIZE, SIZE))["pooled_feat"].shape[1] for net in (teacher, student)]
        own += ("CRD.FEAT.TEACHER_DIM", dims[0], "CRD.FEAT.STUDENT_DIM", dims[1])
    opts = ("SOLVER.TRAINER", trainer, "DATASET.STRONG_VIEW", bool(views), *own)
    cfg = config(pair, method, device, "SOLVER.BATCH_SIZE", batch, *opts)
    distiller = assemble_distiller(cfg, student, teacher, num_data=IMAGES)
    data = loader(batch, resolve_device(device), contrastive_settings(cfg), bool(views))
    made = trainer_dict[trainer]("benchmark", distiller, data, data, cfg)
    made.distiller.train()
    return made, next(iter(made.batches(1)))


@cache
def loader(batch: int, device: torch.device, contrast: Any, strong: bool) -> ArrayLoader:
    """Random images; in memory once for all methods that need the same of it."""
    options = {"contrast": contrast, "strong": strong, "device": device}
    return ArrayLoader(random_images(IMAGES), batch, recipe=RECIPE, train=True, **options)


def rounds_of(
    steps: dict[str, tuple[Any, Any]], rounds: int, now: Callable[[], float]
) -> Iterator[dict[str, float]]:
    """Seconds of a step of each, in turns; a round more is done first, to warm up."""
    for number in range(rounds + 1):
        seconds = {}
        for name, (trainer, batch) in steps.items():
            began = now()
            trainer.step(batch, 1)
            seconds[name] = now() - began
        if number:
            yield seconds


def record(args: argparse.Namespace, seconds: list[dict[str, float]]) -> dict[str, Any]:
    """All that is kept: every step's time, and each method's cost."""
    device = resolve_device(args.device)
    times = {name: [round(1e3 * own[name], 1) for own in seconds] for name in seconds[0]}
    return {
        "machine": machine(device),
        "load": [round(x, 1) for x in (args.load[0], os.getloadavg()[0])],
        "clock": "CPU time" if device.type == "cpu" else "wall time",
        "pair": list(args.pair),
        "batch": args.batch,
        "rounds": len(seconds),
        "how": "median of its steps over the median of KD's",
        "costs": {name: round(median(own) / median(times["KD"]), 3) for name, own in times.items()},
        "milliseconds": times,
    }


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument(
        "--pair", nargs=2, default=("resnet20", "resnet8"), metavar=("TEACHER", "STUDENT")
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the record there (JSON)")
    return parser.parse_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Measure, print, and keep the record."""
    args = parse_arguments(argv)
    args.load = os.getloadavg()
    device = resolve_device(args.device)
    keep_freed_memory()
    pair = tuple(args.pair)
    steps = {name: build(name, pair, args.batch, args.device) for name in names(args.methods)}
    seconds = []
    for own in rounds_of(steps, args.rounds, clock(device, cpu_time=device.type == "cpu")):
        seconds.append(own)
        found = record(args, seconds)
        if args.write:  # after each round, so that a run cut short is one of fewer rounds
            args.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(describe(found["machine"]))
    print(
        f"{' to '.join(pair)}, batch {args.batch}, median of {args.rounds} rounds, "
        f"{found['clock']}, load {' to '.join(map(str, found['load']))}"
    )
    costs, times = found["costs"], found["milliseconds"]
    rows = [(n, f"{x:.2f}", *(f"{q:.0f}" for q in quartiles(times[n]))) for n, x in costs.items()]
    print(table(("method", "step / KD's", "ms: quartiles", "", ""), rows))


if __name__ == "__main__":
    main()
