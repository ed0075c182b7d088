"""One training step, side by side: mdistiller's way, this project's, and torchjd's.

Everything runs in one process, taking turns, so that a slower moment of the machine falls on all;
a ratio is taken within each round. With --original FOLDER the baseline is the step of a checkout of
megvii-research/mdistiller itself, in a process of its own, with .cuda() doing nothing on a CPU.
"re-creation" is a vanilla step as mdistiller takes it, written anew after its code: PyTorch's
memory layout, single precision, a plain teacher, metrics read every step. "cached" variants read
the teacher's answers from a file (tools/cache_teacher.py). A cross-batch step is
also split into its parts, the solver is timed alone, and each variant's peak memory is measured
in processes of its own: with this project's allocator settings, and with an allocator that gives
freed memory back at once ("of tensors"). "re-creation, own process" takes its turns in a
second process, which has glibc's allocator as mdistiller finds it; the others have this project's
settings.
--markdown prints what docs/performance.md shows.

example:
  python benchmarks/step.py --pair resnet56 resnet20 --methods KD AT --json step.json
  python benchmarks/step.py --original ../mdistiller --variants original vanilla crossbatch
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _common as common
import torch
from _phases import PHASES, phase_times
from _variants import ORIGINAL, OWN_PROCESS, RECREATION, VARIANTS, build

from mdistiller.cli import exit_on_error
from mdistiller.device import resolve_device
from mdistiller.engine.runtime.host import keep_freed_memory
from mdistiller.errors import MdistillerError
from mdistiller.weighting import CrossBatchWeighting


def measure(args: argparse.Namespace, device: torch.device, method: str) -> dict[str, list[float]]:
    """Milliseconds per step of every variant, one figure a round, after one round of warm-up."""
    steppers: dict[str, Here | Served] = {}
    kinds = {OWN_PROCESS: Served, ORIGINAL: Original}
    for name in args.variants:
        try:
            steppers[name] = kinds.get(name, Here)(name, method, args, device)
        except ImportError as error:
            print(f"{name}: left out ({' '.join(str(error).split())[:90]})", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    names = list(steppers)
    try:
        for number in range(args.repeats + 1):
            # Another one begins each time: none is always behind the same neighbour.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                # A multiple of PERIOD, so that every round has its share of solved steps.
                steps = max(args.steps, VARIANTS[name].cycle)
                seconds = steppers[name].seconds(steps)
                if number:
                    times[name].append(seconds * 1e3 / steps)
    finally:
        for stepper in steppers.values():
            stepper.close()
    return times


class Here:
    """Takes steps in this process."""

    def __init__(
        self, name: str, method: str, args: argparse.Namespace, device: torch.device
    ) -> None:
        self.step = build(name, method, args, device)
        self.now = common.clock(device, args.cpu_time)

    def seconds(self, steps: int) -> float:
        """What ``steps`` steps take."""
        began = self.now()
        for _ in range(steps):
            self.step()
        return self.now() - began

    def close(self) -> None:
        """Nothing to end."""


class Served:
    """Takes steps in a process of its own, which waits while it is not its turn."""

    def __init__(
        self, name: str, method: str, args: argparse.Namespace, device: torch.device
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            self.command(method, args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def command(self, method: str, args: argparse.Namespace) -> list[str]:
        return [*child(args, method), "--serve", self.name, *["--cpu-time"] * args.cpu_time]

    def seconds(self, steps: int) -> float:
        """What ``steps`` steps take.

        Raises:
            MdistillerError: the process has ended; it has said why.
        """
        with contextlib.suppress(BrokenPipeError):
            print(steps, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise MdistillerError(f"the step {self.name!r} cannot be taken; see what it says above")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


class Original(Served):
    """Takes steps of a checkout of mdistiller, see _original.py."""

    def command(self, method: str, args: argparse.Namespace) -> list[str]:
        script = Path(__file__).with_name("_original.py")
        clock = "cpu" if args.cpu_time else "wall"
        batch, threads = str(args.batch_size), str(args.threads)
        words = [sys.executable, str(script), str(args.original), *args.pair, method]
        return [*words, batch, threads, args.device, clock]


def child(args: argparse.Namespace, method: str) -> list[str]:
    """The command of this script for one method."""
    command = [sys.executable, __file__, "--methods", method, "--pair", *args.pair]
    command += ["--batch-size", str(args.batch_size), "--threads", str(args.threads)]
    return [*command, "--device", args.device]


def serve(args: argparse.Namespace, device: torch.device) -> None:
    """Read numbers of steps, take so many, and print the seconds."""
    stepper = Here(args.serve, args.methods[0], args, device)
    for line in sys.stdin:
        print(stepper.seconds(int(line)), flush=True)


def summary(times: dict[str, list[float]], pair: list[str]) -> list[dict[str, Any]]:
    """Of each variant: milliseconds, and its ratios to mdistiller's and to our own vanilla step."""
    teacher = common.teacher_cost(pair)
    rows = []
    for name, own in times.items():
        variant = VARIANTS[name]
        row = {"variant": name, "ms": common.quartiles(own)}
        baseline = ORIGINAL if ORIGINAL in times else RECREATION
        for key, other in (("to_baseline", baseline), ("to_vanilla", variant.vanilla)):
            if other in times:
                ratios = [a / b for a, b in zip(own, times[other], strict=True)]
                row[key] = common.quartiles(ratios)
        row["by_macs"] = (teacher * (not variant.cached) + variant.cost) / (teacher + 3)
        rows.append(row)
    return rows


def solvers(repeats: int, calls_each: int = 20) -> dict[str, float]:
    """Microseconds of one solve of the same Gramian, medians over turns of some calls each."""
    import torchjd.aggregation as peers

    rows = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gramian = rows @ rows.T
    pair = gramian[:2, :2].clone()
    calls = {"cross-batch": (CrossBatchWeighting(), gramian)}
    for name, arguments in (("MGDA", {}), ("CAGrad", {"c": 0.5})):
        try:
            calls[f"torchjd {name}"] = (getattr(peers, f"{name}Weighting")(**arguments), pair)
        except ImportError:
            print(f"torchjd {name}: left out, see torchjd's optional parts", file=sys.stderr)
    now = common.clock(torch.device("cpu"))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (solve, matrix) in calls.items():
            solve(matrix)
            began = now()
            for _ in range(calls_each):
                solve(matrix)
            times[name].append((now() - began) * 1e6 / calls_each)
    return {name: common.quartiles(values)[1] for name, values in times.items()}


# An allocator that gives freed memory back at once, so that the peak is what the tensors need.
SMALL_PAGES = {
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "THP_MEM_ALLOC_ENABLE": "0",
}


def peak_memory(args: argparse.Namespace, method: str) -> Iterator[tuple[str, list[float]]]:
    """MiB that each variant adds to a process that has done nothing but import.

    The first with this project's allocator settings, the second with :data:`SMALL_PAGES`.
    """
    for name in args.variants:
        if name == ORIGINAL:
            continue
        command = [*child(args, method), "--memory-of", name]
        runs = [
            subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
            for settings in ({}, SMALL_PAGES)
        ]
        if not any(run.returncode for run in runs):
            yield name, [float(run.stdout) for run in runs]


def own_peak(args: argparse.Namespace, device: torch.device) -> float:
    """MiB of the one variant ``args.memory_of`` over some steps, in this process."""
    before = common.peak_resident()
    step = build(args.memory_of, args.methods[0], args, device)
    for _ in range(4):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return common.peak_resident() - before


def spread(values: tuple[float, float, float] | None, digits: int) -> str:
    """Quartiles as "middle (low to high)"; "-" for None."""
    if values is None:
        return "-"
    low, middle, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} ({low} to {high})"


def ratios(baseline: str = RECREATION) -> tuple[str, ...]:
    """The headings of what :func:`step_cells` gives after the variant and its milliseconds."""
    return (f"/ {baseline}", "/ own vanilla", "by MACs")


def step_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of :func:`summary` as text."""
    found = (spread(row.get(key), 3) for key in ("to_baseline", "to_vanilla"))
    return (row["variant"], spread(row["ms"], 1), *found, f"{row['by_macs']:.3f}")


def report(result: dict[str, Any], markdown: bool) -> str:
    """Everything measured, as text."""
    header = ("variant", "ms a step", *ratios(result["baseline"]), "peak MiB", "of tensors")
    parts = [common.describe(result["machine"])]
    for method, found in result["methods"].items():
        memory = found["memory"]
        rows = [
            (
                *step_cells(row),
                *(f"{peak:.0f}" for peak in memory.get(row["variant"], ())),
                *("-" for _ in header[5:] if row["variant"] not in memory),
            )
            for row in found["variants"]
        ]
        pair = " to ".join(result["pair"])
        parts.append(f"{method}, {pair}, batch {result['batch_size']}; median (quartiles)")
        parts.append(common.table(header, rows, markdown))
        for name, phases in found["phases"].items():
            total = sum(phases.values())
            cells = [f"{phases[p]:.2f} ({phases[p] / total:.1%})" for p in (*PHASES, "rest")]
            parts.append(f"where the time of {name} goes, ms a step")
            parts.append(common.table((*PHASES, "rest"), [cells], markdown))
    if result["solvers"]:
        own = result["solvers"]["cross-batch"]
        rows = [(n, f"{us:.0f}", f"{us / own:.1f}") for n, us in result["solvers"].items()]
        parts.append("the solver alone, on the same Gramian")
        parts.append(common.table(("solver", "us", "/ ours"), rows, markdown))
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    """The command line, checked as far as argparse can."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pair", nargs=2, default=["resnet56", "resnet20"], metavar=("TEACHER", "STUDENT"))
    add("--methods", nargs="+", default=["KD"], metavar="NAME", help="distillers (default KD)")
    add("--original", type=Path, metavar="FOLDER", help="a checkout of megvii-research/mdistiller")
    add("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="(default: all)")
    add("--batch-size", type=int, default=64)
    add("--repeats", type=int, default=10, help="rounds (default 10)")
    add("--steps", type=int, default=3, help="steps of a variant in a round (default 3)")
    add("--cpu-time", action="store_true", help="CPU seconds: for one thread on a busy machine")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--cost-table", action="store_true", help="print the cost model of all pairs, no timing")
    add("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    add("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    common.add_options(parser)
    args = parser.parse_args()
    if args.variants is None:
        args.variants = [name for name in VARIANTS if args.original or name != ORIGINAL]
    if (ORIGINAL in args.variants) != (args.original is not None):
        parser.error(f"the variant {ORIGINAL} and --original FOLDER need each other")
    if args.original and not (args.original / "mdistiller" / "engine" / "trainer.py").exists():
        parser.error(f"{args.original} is no checkout: mdistiller/engine/trainer.py is missing")
    return args


@exit_on_error
def main() -> None:
    """Measure and print."""
    args = parse()
    if args.cost_table:
        print(common.cost_table(args.markdown))
        return
    if OWN_PROCESS not in (args.serve, args.memory_of):
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    if args.serve:
        serve(args, device)
        return
    if args.memory_of:
        print(own_peak(args, device))
        return
    result: dict[str, Any] = {
        "machine": common.machine(device),
        "baseline": ORIGINAL if args.original else RECREATION,
        "pair": args.pair,
        "batch_size": args.batch_size,
        "clock": "cpu seconds" if args.cpu_time else "wall",
        "methods": {},
        "solvers": solvers(2 * args.repeats),
    }
    for method in args.methods:
        times = measure(args, device, method)
        result["methods"][method] = {
            "variants": summary(times, args.pair),
            "phases": {
                name: phase_times(build(name, method, args, device), device, args)
                for name in ("crossbatch", "crossbatch bf16 compiled")
                if name in args.variants
            },
            "memory": {} if args.no_memory else dict(peak_memory(args, method)),
            "rounds_ms": times,
        }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result, args.markdown))


if __name__ == "__main__":
    main()
