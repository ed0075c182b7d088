"""Train the runs behind a table or figure of the paper.

Runs that are done are not repeated, interrupted ones are continued, failed ones are reported
and left alone unless --retry-failed is given. Calls at the same time, on one machine or on
several that share the folder, take different runs. With --share-teacher one process trains all
runs of a pair and trial side by side, which makes batches and the teacher's answers once for all
of them and changes no result. tools/report.py prints the results.

examples:
  python tools/reproduce.py table1 --dry-run
  python tools/reproduce.py table1 --trials 5 --dry-run --workers 64 --speeds gpu-check.json
  python tools/reproduce.py table1 --pairs res56_res20 vgg13_vgg8 --methods KD RKD
  python tools/reproduce.py table1 --dataset digits --trials 3 --workers 2
  python tools/reproduce.py table2 --epochs 60 SOLVER.DEVICE cuda
  python tools/reproduce.py table1 --teacher-cache --cache-dtype fp16 --workers 8
  python tools/reproduce.py table1 --share-teacher --workers 2 --fleet-size 5
  python tools/reproduce.py grid_b --dataset fashion_mnist --workers 2 --record results
  python tools/reproduce.py table1 --backend ray --address auto --gpus-per-run 0.5
"""

from __future__ import annotations

import argparse
import sys

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.console import output_is_optional
from mdistiller.engine.caching.file import DTYPES
from mdistiller.errors import ConfigError
from mdistiller.experiments import (
    ALL,
    RESULTS,
    TABLES,
    LocalBackend,
    RayBackend,
    Request,
    datasets,
    describe,
    local_slots,
    reproduce,
)
from mdistiller.experiments.speeds import Speeds
from mdistiller.experiments.watch import HANG_MINUTES


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help=", ".join(TABLES))
    parser.add_argument("--pairs", nargs="+", default=[], metavar="PAIR", help="e.g. res56_res20")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD", help="methods or rows, e.g. KD mgda"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="per cell (default 5)")
    parser.add_argument(
        "--dataset", default="cifar100", metavar="NAME", help=f"{', '.join(datasets())}"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="of the students; decay stages in proportion"
    )
    parser.add_argument("--teacher-epochs", type=int, metavar="N", help="the same for teachers")
    parser.add_argument(
        "--train-teachers", action="store_true", help="train teachers whose checkpoint is missing"
    )
    parser.add_argument("--prefix", default="./output", metavar="DIR", help="(default ./output)")
    parser.add_argument(
        "--record",
        metavar="DIR",
        help="folder of records: what is done there is not trained again, and what ends is added "
        f"(default: {RESULTS} for grids, else the prefix)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print plan, time and disk only")
    parser.add_argument(
        "--speeds",
        metavar="FILE",
        help="with --dry-run: estimate for the machine on which make gpu-check has written FILE",
    )
    parser.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    _add_machine(parser.add_argument_group("where it runs"))
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides for all students")
    args = parser.parse_intermixed_args(argv)
    for name in ("pairs", "methods"):
        _give_back(args, name)
    return args


def _give_back(args: argparse.Namespace, name: str) -> None:
    """Move overrides that follow a list on the command line, and so ended in it, to ``opts``."""
    words = getattr(args, name)
    keys = (i for i, word in enumerate(words) if "." in word and word.split(".")[0].isupper())
    end = next(keys, len(words))
    setattr(args, name, words[:end])
    args.opts = [*words[end:], *args.opts]


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes at a time (default: CUDA devices, or 1)"
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="of a process (default: the machine's divided)"
    )
    group.add_argument(
        "--share-teacher",
        action="store_true",
        help="train runs of the same batches and teacher in one process; the results are the same",
    )
    group.add_argument(
        "--fleet-size",
        type=int,
        metavar="N",
        help="with --share-teacher: the most runs of a process (default: all that fit together)",
    )
    group.add_argument(
        "--teacher-cache",
        action="store_true",
        help="keep each teacher's answers in a file where the plan is long enough to pay for it",
    )
    group.add_argument(
        "--cache-dtype", choices=DTYPES, default="fp32", help="of those answers (default fp32)"
    )
    group.add_argument(
        "--hang-minutes",
        type=float,
        default=HANG_MINUTES,
        metavar="M",
        help="a process that has written nothing for so long is killed and its runs go on in "
        f"another one (default {HANG_MINUTES:g}; 0: never)",
    )
    group.add_argument("--backend", choices=("local", "ray"), default="local")
    group.add_argument("--address", help="of a Ray cluster, e.g. auto (default: this machine)")
    group.add_argument(
        "--gpus-per-run", type=float, metavar="F", help="with --backend ray (default 1 if any)"
    )


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Plan, train what is missing, and say how it went."""
    args = parse_arguments(argv)
    _check(args)
    request = Request(
        args.table,
        args.dataset,
        tuple(args.pairs),
        tuple(args.methods),
        args.trials,
        args.epochs,
        args.teacher_epochs,
        args.prefix,
        tuple(args.opts),
        args.train_teachers,
        args.record,
        ("reproduce.py", *(sys.argv[1:] if argv is None else argv)),
        args.cache_dtype if args.teacher_cache else None,
    )
    overrides = dict(zip(args.opts[0::2], args.opts[1::2], strict=False))
    slots = local_slots(args.workers, overrides.get("SOLVER.DEVICE", "auto"), args.threads)
    if args.epochs:
        print(f"--epochs {args.epochs}: SOLVER.LR_DECAY_STAGES are scaled in proportion")
    fleet_size = (args.fleet_size or ALL) if args.share_teacher else 1
    if args.dry_run:
        speeds = Speeds.read(args.speeds) if args.speeds else None
        threads = int(slots[0]["OMP_NUM_THREADS"])
        print(describe(request, len(slots), threads, fleet_size, speeds))
        return

    def open_backend() -> LocalBackend | RayBackend:
        if args.backend == "ray":
            machine = args.address, args.workers, args.gpus_per_run, args.threads
            return RayBackend(*machine, args.hang_minutes)
        return LocalBackend(slots, args.hang_minutes)

    output_is_optional()
    reproduce(request, open_backend, retry_failed=args.retry_failed, fleet_size=fleet_size)


def _check(args: argparse.Namespace) -> None:
    for name in ("workers", "threads", "fleet_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be 1 or greater, not {value}")
    if not args.hang_minutes >= 0:
        raise ConfigError(f"--hang-minutes must be 0 or greater, not {args.hang_minutes}")
    if args.speeds and not args.dry_run:
        raise ConfigError("--speeds is for the estimate of --dry-run")
    if args.fleet_size is not None and not args.share_teacher:
        raise ConfigError("--fleet-size needs --share-teacher")
    if args.gpus_per_run is not None and args.gpus_per_run < 0:
        raise ConfigError(f"--gpus-per-run must be 0 or greater, not {args.gpus_per_run}")
    if args.backend != "ray" and (args.address or args.gpus_per_run is not None):
        raise ConfigError("--address and --gpus-per-run need --backend ray")
