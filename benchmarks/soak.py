"""A long training that must not grow or slow down: memory, file handles, threads, step time.

Runs the real trainer with validation, logs and a checkpoint every epoch in a temporary folder,
and measures its own process while it trains. Ends with status 1 if, between the warm-up (the
first fifth) and the end, memory grew by more than --memory MiB, file handles or threads by more
than 2, or if a step of the last tenth takes more than --slowdown times as long as one of the
second tenth; on a CPU in processor time, which other programs on the machine do not lengthen,
elsewhere in elapsed time. The samples and the verdict go to --out, one line of JSON each.

example:
  python benchmarks/soak.py --minutes 30 --out output/soak.jsonl
  python benchmarks/soak.py --cfg configs/digits/rkd.yaml --steps 2000 SOLVER.BATCH_SIZE 32
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mdistiller.cli import exit_on_error  # noqa: E402
from mdistiller.dataset import build_model  # noqa: E402
from mdistiller.engine.cfg import load_cfg  # noqa: E402
from mdistiller.engine.run import build_trainer  # noqa: E402
from mdistiller.errors import ConfigError, MdistillerError  # noqa: E402

CFG = "configs/digits/crossbatch_kd.yaml"
CLASSES = {"digits": 10, "fashion_mnist": 10, "cifar100": 100, "tiny_imagenet": 200}
MIB = 2**20

# File handles or threads more than at the start that are no leak (a log, a pool's thread).
SPARE = 2
# Fewer samples say nothing about tenths.
LEAST_SAMPLES = 20
REPORT_SECONDS = 60.0


class Enough(Exception):
    """Ends the training from within: the time or the steps are used up."""


def process_reader() -> Callable[[], dict[str, int]]:
    """A function that reads this process's resident memory, file handles and threads.

    Raises:
        MdistillerError: the system has neither /proc nor psutil.
    """
    if Path("/proc/self/statm").exists():
        return _read_proc
    try:
        import psutil
    except ImportError:
        raise MdistillerError("without /proc this needs psutil; run: pip install psutil") from None
    process = psutil.Process()
    return lambda: {
        "rss": process.memory_info().rss,
        "handles": process.num_handles() if os.name == "nt" else process.num_fds(),
        "threads": process.num_threads(),
    }


def _read_proc() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


class Sampler:
    """Times every step of a trainer and takes a sample every ``every`` steps.

    Args:
        every: steps.
        steps, seconds: when to stop with :class:`Enough`, whichever comes first.
        write: gets each sample: "step", "seconds" since the start, "rss" in bytes, "handles",
            "threads", and medians since the sample before: "step_ms", elapsed, and "work_ms",
            processor time on a CPU, else the same as "step_ms".
    """

    def __init__(
        self, every: int, steps: float, seconds: float, write: Callable[[dict[str, Any]], None]
    ) -> None:
        self.every, self.steps, self.seconds, self.write = every, steps, seconds, write
        self.samples: list[dict[str, Any]] = []
        self._read = process_reader()
        self._times: list[tuple[float, float]] = []
        self._start = time.monotonic()
        self._done = 0

    def watch(self, trainer: Any) -> None:
        """Measure all steps that ``trainer`` makes from now on."""
        step = trainer.step

        on_cpu = trainer.device.type == "cpu"

        def measured(batch: Any, epoch: int) -> Any:
            began, worked = time.perf_counter(), time.process_time()
            result = step(batch, epoch)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            elapsed = time.perf_counter() - began
            self._after(elapsed, time.process_time() - worked if on_cpu else elapsed)
            return result

        trainer.step = measured

    def _after(self, elapsed: float, worked: float) -> None:
        self._done += 1
        self._times.append((elapsed, worked))
        passed = time.monotonic() - self._start
        if self._done % self.every == 0:
            step_ms, work_ms = (statistics.median(t) * 1e3 for t in zip(*self._times, strict=True))
            sample = {"step": self._done, "seconds": passed, **self._read()}
            sample |= {"step_ms": step_ms, "work_ms": work_ms}
            self._times.clear()
            self.samples.append(sample)
            self.write(sample)
        if self._done >= self.steps or passed >= self.seconds:
            raise Enough


def judge(
    samples: list[dict[str, Any]], memory_mib: float, slowdown: float
) -> tuple[dict[str, float], list[str]]:
    """What was measured over the run, and what is wrong with it in words (nothing: sound).

    Args:
        samples: of a :class:`Sampler`, at least :data:`LEAST_SAMPLES`.
        memory_mib: allowed growth after the warm-up, of the fitted line, in MiB.
        slowdown: allowed ratio of the step time of the last tenth to that of the second.
    """
    tenth = len(samples) // 10
    second, last = samples[tenth : 2 * tenth], samples[-tenth:]
    rest = samples[2 * tenth :]
    rss = np.array([s["rss"] for s in rest]) / MIB
    steps = np.array([s["step"] for s in rest], dtype=float)
    slope = _slope(steps, rss)

    def growth(key: str) -> float:
        return _median(last, key) - _median(rest[:tenth], key)

    found = {
        "memory_growth_mib": slope * (steps[-1] - steps[0]),
        "memory_kib_per_step": slope * 1024,
        "handle_growth": growth("handles"),
        "thread_growth": growth("threads"),
        "slowdown": _median(last, "work_ms") / _median(second, "work_ms"),
        "slowdown_elapsed": _median(last, "step_ms") / _median(second, "step_ms"),
    }
    wrong = []
    if found["memory_growth_mib"] > memory_mib:
        wrong.append(f"memory grew by {found['memory_growth_mib']:.1f} MiB (limit {memory_mib:g})")
    for name, key in (("file handles", "handle_growth"), ("threads", "thread_growth")):
        if found[key] > SPARE:
            wrong.append(f"{name} grew by {found[key]:g} (limit {SPARE})")
    if found["slowdown"] > slowdown:
        wrong.append(f"steps became {found['slowdown']:.2f} times as long (limit {slowdown:g})")
    return found, wrong


def _median(samples: list[dict[str, Any]], key: str) -> float:
    return statistics.median(s[key] for s in samples)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Median of the slopes between points half the run apart: single jumps count little."""
    half = len(x) // 2
    return float(np.median((y[-half:] - y[:half]) / (x[-half:] - x[:half])))


def build(cfg_file: str, opts: list[str], folder: Path) -> Any:
    """The trainer of a configuration that trains until it is stopped, its files in ``folder``.

    A teacher whose checkpoint is not there gets random weights, which cost the same time.
    """
    opts = [*opts, "LOG.PREFIX", str(folder), "SOLVER.EPOCHS", "1000000"]
    cfg = load_cfg(cfg_file, opts)
    ckpt = cfg.DISTILLER.TEACHER_CKPT
    if cfg.DISTILLER.TYPE != "NONE" and ckpt and not Path(ckpt).expanduser().exists():
        if cfg.DATASET.TYPE not in CLASSES:
            raise ConfigError(f"DISTILLER.TEACHER_CKPT {ckpt} does not exist")
        model = build_model(cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER, CLASSES[cfg.DATASET.TYPE])
        torch.save({"model": model.state_dict()}, folder / "teacher")
        cfg = load_cfg(cfg_file, [*opts, "DISTILLER.TEACHER_CKPT", str(folder / "teacher")])
    return build_trainer(cfg)


def soak(args: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Train as the command line says; returns the samples, each of which ``write`` got."""
    said = time.monotonic()

    def report(sample: dict[str, Any]) -> None:
        nonlocal said
        write(sample)
        if time.monotonic() - said > REPORT_SECONDS:
            said = time.monotonic()
            print(_row(sample), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = build(args.cfg, args.opts, Path(folder))
        seconds = args.minutes * 60 if args.steps is None else float("inf")
        sampler = Sampler(args.every, args.steps or float("inf"), seconds, report)
        sampler.watch(trainer)
        # The trainer's line an epoch would bury the table.
        with contextlib.suppress(Enough), contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return sampler.samples


def _row(sample: dict[str, Any]) -> str:
    return (
        f"{sample['step']:8d}  {sample['seconds'] / 60:7.1f}  {sample['rss'] / MIB:8.1f}  "
        f"{sample['handles']:7d}  {sample['threads']:7d}  {sample['step_ms']:7.1f}  "
        f"{sample['work_ms']:7.1f}"
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", default=CFG, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=30, help="how long (default 30)")
    parser.add_argument("--steps", type=int, help="how many steps, instead of --minutes")
    parser.add_argument("--every", type=int, default=20, help="steps a sample (default 20)")
    parser.add_argument("--memory", type=float, default=16, metavar="MIB", help="default 16")
    parser.add_argument("--slowdown", type=float, default=1.5, help="default 1.5")
    parser.add_argument("--out", default="output/soak.jsonl", help="default: %(default)s")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of keys")
    return parser.parse_intermixed_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Train for the time asked for, write what was sampled, and exit with 1 if it grew."""
    args = parse_arguments(argv)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:

        def write(entry: dict[str, Any]) -> None:
            print(json.dumps(entry), file=file, flush=True)

        samples = soak(args, write)
        if len(samples) < LEAST_SAMPLES:
            raise ConfigError(
                f"{len(samples)} samples are too few to judge, {LEAST_SAMPLES} are needed; "
                "give more --minutes or --steps, or a smaller --every"
            )
        found, wrong = judge(samples, args.memory, args.slowdown)
        write({"cfg": args.cfg, "torch": torch.__version__, **found, "wrong": wrong})
    print("    step  minutes  RSS MiB  handles  threads  ms/step  work ms")
    for i in np.linspace(0, len(samples) - 1, 11).astype(int):
        print(_row(samples[i]))
    for key, value in found.items():
        print(f"{key}: {value:.3g}")
    if wrong:
        raise MdistillerError(f"{'; '.join(wrong)}; all samples are in {out}")
    print(f"no growth, no slowing down; all samples are in {out}")


if __name__ == "__main__":
    main()
