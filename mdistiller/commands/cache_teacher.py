"""Keep a teacher's answers to all crops and flips of the training images; see --help."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from mdistiller.cli import ToolParser, exit_on_error
from mdistiller.config import load_cfg
from mdistiller.console import Seldom, log, steady
from mdistiller.device import usable_cores
from mdistiller.engine.caching.answers import PARTS, Source, source_of
from mdistiller.engine.caching.file import DTYPES, CacheFile, open_or_create
from mdistiller.engine.check import check_config
from mdistiller.engine.runtime.host import use_host
from mdistiller.engine.runtime.signals import end_on_signals
from mdistiller.errors import ConfigError, DataError, MdistillerError
from mdistiller.experiments.backends import PARENT, training_variables
from mdistiller.experiments.estimate import duration, size
from mdistiller.experiments.ray_backend import run_on_ray

DESCRIPTION = """Keep a teacher's answers to the training images in all crops and flips in one file.

A frozen teacher's answer depends on the image, its shift and its flip alone: on CIFAR-100 that
are 162 variants of each image, so after 162 passes over the training set the teacher need never
run again. DISTILLER.TEACHER_CACHE FILE makes KD, DKD, RKD, PKT, CRD and the other methods that
compare logits or pooled features read the file. It is always of the whole training set, whatever
DATASET.SUBSET and HOLDOUT say, and so serves every choice of images. What was computed is kept
when this tool is stopped; the same command goes on, and several at the same time share the work."""

EXAMPLES = """examples:
  python tools/cache_teacher.py --cfg configs/digits/kd.yaml
  python tools/cache_teacher.py --cfg configs/cifar100/kd.yaml --dtype fp16 --workers 8
  python tools/cache_teacher.py --cfg configs/glyphs/kd.yaml --parts logits
  python tools/cache_teacher.py --cfg configs/cifar100/kd.yaml --shard 0/4   # and 1/4, 2/4, 3/4
  python tools/cache_teacher.py --cfg configs/cifar100/kd.yaml --ray auto --workers 16
  python tools/train.py --cfg configs/digits/kd.yaml DISTILLER.TEACHER_CACHE FILE
"""

_LOOK_SECONDS = 0.5
_LINE_SECONDS = 60.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = ToolParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cfg", required=True, metavar="FILE", help="a YAML file with that teacher and data set")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="(default: below LOG.PREFIX, named by what it holds)",
    )
    add("--dtype", choices=DTYPES, default="fp32", help="of the numbers kept (default fp32)")
    add(
        "--parts",
        type=_parts,
        metavar="NAME,...",
        help=f"of {', '.join(PARTS)} (default: the first two, and what the method reads)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    add("--shard", metavar="I/N", help="compute every N-th block from the I-th (0 to N - 1) only")
    add("--ray", metavar="ADDRESS", help="run the processes on a Ray cluster that shares folders")
    add("--verify", action="store_true", help="read the whole file and compare its checksums")
    add("--child", help=argparse.SUPPRESS)
    add("opts", nargs="*", metavar="KEY VALUE", help="overrides of configuration keys")
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Compute what the file lacks."""
    args = parse_arguments(argv)
    shard = _shard(args)
    end_on_signals()
    use_host()
    cfg = load_cfg(args.cfg, args.opts)
    # A file that is about to be made need not be there.
    cfg.put("DISTILLER.TEACHER_CACHE", "")
    check_config(cfg)
    source = source_of(cfg, args.dtype, args.parts)
    path = args.out or Path(cfg.LOG.PREFIX) / "teacher_caches" / _name(source)
    file = open_or_create(path, source.header)
    if args.child:
        source.fill(file, shard, lambda blocks: _end_without(int(args.child)))
        return
    header = source.header
    log(
        f"{path}: {header.teacher['name']}'s {', '.join(header.parts)} of {header.variants} "
        f"variants of {header.data['images']} images of {header.data['type']}, {args.dtype}, "
        f"{size(header.file_bytes)}"
    )
    began, before = time.monotonic(), file.missing
    with _Progress(header.blocks, header.blocks - before) as done:
        if args.workers == 1 and not args.ray:
            source.fill(file, shard, done)
        else:
            file.close()  # its locks, and its room, are the children's
            _spread(args, path, done)
            file = CacheFile(path)
    took = duration(time.monotonic() - began)
    log(f"{before - file.missing} of {before} missing blocks computed in {took}")
    if args.verify:
        _verify(file)
    if file.missing:
        log(f"{file.missing} blocks are left to other processes")
    else:
        log(f"complete; train with DISTILLER.TEACHER_CACHE {path}")


class _Progress:
    """A bar on a terminal; elsewhere a line a minute."""

    def __init__(self, total: int, initial: int) -> None:
        output = steady(sys.stdout)
        quiet = not output.isatty()
        self._bar = tqdm(total=total, initial=initial, unit="block", file=output, disable=quiet)
        self._total, self._first, self._quiet = total, initial, quiet
        self._began, self._line = time.monotonic(), Seldom(_LINE_SECONDS)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, blocks: int) -> None:
        """So many blocks are finished."""
        self._bar.update(blocks - self._bar.n)
        if self._quiet and blocks > self._first and self._line.due():
            each = (time.monotonic() - self._began) / (blocks - self._first)
            left = each * (self._total - blocks)
            log(f"{blocks} of {self._total} blocks, {duration(left)} left")


def _shard(args: argparse.Namespace) -> tuple[int, int] | None:
    if args.workers < 1:
        raise ConfigError(f"--workers must be 1 or greater, not {args.workers}")
    if args.shard is None:
        return None
    if args.workers > 1 or args.ray:
        raise ConfigError("--shard is the part of one process; leave --workers and --ray out")
    number, _, count = args.shard.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ConfigError(f"--shard must be I/N with I from 0 to N - 1, not {args.shard!r}")
    return int(number), int(count)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if "logits" not in names or not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(
            f"must be names of {', '.join(PARTS)} with commas in between, logits among them, not "
            f"{text!r}"
        )
    return names


def _name(source: Source) -> str:
    header = source.header
    name = f"{header.data['type']}-{header.teacher['name']}-{header.digest}-{header.dtype}"
    return f"{name}.cache"


def _end_without(parent: int) -> None:
    """End a process whose parent has ended."""
    if os.getppid() != parent:
        sys.exit("error: the process that started this one has ended")


def _spread(args: argparse.Namespace, path: Path, done) -> None:
    """Compute in several processes, which share the blocks among themselves."""
    command = ["-m", "mdistiller.commands.cache_teacher", "--cfg", args.cfg, "--out", str(path)]
    command += ["--dtype", args.dtype, "--child", PARENT]
    command += ["--parts", ",".join(args.parts)] if args.parts else []
    command += args.opts
    if args.ray:
        codes = run_on_ray([command] * args.workers, args.ray, path.with_name(path.name + ".log"))
    else:
        codes = _run_here([command] * args.workers, path, done)
    if any(codes):
        raise MdistillerError(
            f"{sum(map(bool, codes))} of {len(codes)} processes have failed, see above; the same "
            "command goes on with what is left"
        )


def _run_here(commands: list[list[str]], path: Path, done) -> list[int]:
    threads = max(1, usable_cores() // len(commands))
    environment = {**os.environ, **training_variables(threads)}
    processes = [
        subprocess.Popen(
            [sys.executable, *(str(os.getpid()) if word == PARENT else word for word in command)],
            env=environment,
        )
        for command in commands
    ]
    try:
        file = CacheFile(path)
        while any(process.poll() is None for process in processes):
            done(file.header.blocks - file.missing)
            time.sleep(_LOOK_SECONDS)
        done(file.header.blocks - file.missing)
    finally:
        for process in processes:
            process.terminate()
        codes = [process.wait() for process in processes]
    return codes


def _verify(file: CacheFile) -> None:
    written = [b for b, checksum in enumerate(file.checksums) if checksum]
    bad = [block for block in written if file.damaged(block)]
    if bad:
        raise DataError(f"{file.path} is damaged in {len(bad)} blocks; delete it and make another")
    log(f"{len(written)} blocks are as they were written")


if __name__ == "__main__":
    main()
