"""What the benchmarks share: the checkout on the path, toy data, trainers, statistics, tables."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from mdistiller.dataset import build_model  # noqa: E402
from mdistiller.dataset._array import ArrayLoader, ImageArray  # noqa: E402
from mdistiller.dataset.cifar100 import RECIPE  # noqa: E402
from mdistiller.device import processor  # noqa: E402
from mdistiller.distillers import Distiller  # noqa: E402
from mdistiller.engine import BaseTrainer, trainer_dict  # noqa: E402
from mdistiller.engine.caching.answers import FileRecall, Source  # noqa: E402
from mdistiller.engine.caching.file import CacheFile, create  # noqa: E402
from mdistiller.engine.cfg import CFG, load_cfg  # noqa: E402
from mdistiller.engine.check import check_config  # noqa: E402
from mdistiller.engine.run import assemble_distiller  # noqa: E402
from mdistiller.engine.rundir.result import device_name, source_commit  # noqa: E402
from mdistiller.engine.runtime.host import keep_freed_memory  # noqa: E402
from mdistiller.listing import count_macs  # noqa: E402

CLASSES, SIZE = 100, 32


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that benchmarks have in common."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true")


def start(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with the common ones; threads and memory are set."""
    add_options(parser)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    return args


def random_images(count: int, padding: int = 4) -> ImageArray:
    """``count`` noise images like CIFAR-100's; the values do not change any time measured."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=rng)
    targets = torch.randint(CLASSES, (count,), generator=rng)
    return ImageArray(images, targets, CLASSES, padding)


def loader(images: ImageArray, batch: int, device: torch.device, train: bool = True) -> ArrayLoader:
    """The loader that CIFAR-100 is trained with."""
    return ArrayLoader(images, batch, recipe=RECIPE, device=device, train=train)


def config(pair: Sequence[str], distiller: str, device: str, *opts: Any):
    """The configuration of one run of ``pair`` (teacher, student)."""
    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("DISTILLER.TYPE", distiller, "SOLVER.DEVICE", device),
            *("DISTILLER.TEACHER", pair[0], "DISTILLER.STUDENT", pair[1]),
            *("SOLVER.WEIGHT_DECAY", 5e-4, *opts),
        ]
    )
    check_config(cfg)
    return cfg


def networks(cfg: Any) -> Distiller:
    """The distiller of ``cfg`` over freshly drawn networks."""
    torch.manual_seed(0)
    teacher, student = (
        build_model("cifar100", n, CLASSES) for n in (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT)
    )
    return assemble_distiller(cfg, student, teacher, num_data=1)


def trainer(
    cfg: Any,
    data: ArrayLoader,
    cls: type[BaseTrainer] | None = None,
    val: ArrayLoader | None = None,
) -> BaseTrainer:
    """The trainer of ``cfg`` (or ``cls``) over ``data``, in train mode."""
    cls = cls or trainer_dict[cfg.SOLVER.TRAINER]
    made = cls("benchmark", networks(cfg), data, data if val is None else val, cfg)
    made.distiller.train()
    return made


def answer_from_a_file(cfg: Any, trainer: BaseTrainer, data: ArrayLoader) -> None:
    """Let the trainer's teacher be read from a file of zeros of the right size.

    Before the loader is asked for its first batch. The file has no name any more, so that it
    ends with this process.
    """
    distiller = trainer.distiller
    source = Source(cfg, distiller.own_teacher, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers"
        create(path, source.header)
        file = CacheFile(path)
        file.rows(torch.zeros(1).long(), torch.zeros(1).long())  # mapped from now on
    distiller.recall = FileRecall(file)
    data.answers = file


def teacher_cost(pair: Sequence[str]) -> float:
    """T: the teacher's forward pass in units of the student's, by multiply-accumulates."""
    macs = []
    for name in pair:
        with torch.device("meta"):
            network = build_model("cifar100", name, CLASSES).eval()
        macs.append(count_macs(network, SIZE))
    return macs[0] / macs[1]


def cost_table(markdown: bool = False) -> str:
    """Steps by multiply-accumulates for the CIFAR-100 pairs of configs/cifar100/crossbatch."""
    folder = Path(__file__).resolve().parents[1] / "configs" / "cifar100" / "crossbatch"
    rows = []
    for file in sorted(folder.glob("kd_*.yaml")):
        node = load_cfg(file).DISTILLER
        pair = (node.TEACHER, node.STUDENT)
        t = teacher_cost(pair)
        ratios = ((t + passes) / (t + 3) for passes in (8, 5, 3.5))
        rows.append((" to ".join(pair), f"{t:.2f}", *(f"{r:.2f}" for r in ratios)))
    header = ("pair", "T", "(T + 8) / (T + 3)", "(T + 5) / (T + 3)", "(T + 3.5) / (T + 3)")
    return table(header, rows, markdown)


def clock(device: torch.device, cpu_time: bool = False) -> Callable[[], float]:
    """Seconds, after everything given to ``device`` is done; or this process's CPU seconds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.process_time() if cpu_time else time.perf_counter()

    return now


def peak_resident() -> float:
    """MiB, the most that this process has had in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose figure a child inherits from its parent.
        lines = status.read_text(encoding="utf-8").splitlines()
        (line,) = (x for x in lines if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "device": device_name(device),
        **processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": source_commit(),
    }


def describe(facts: dict[str, Any]) -> str:
    """One line of :func:`machine`."""
    commit = (facts["commit"] or "unknown")[:12]
    return (
        f"{facts['device']}, {facts['cpu']} ({facts['instructions']}), {facts['threads']} threads, "
        f"torch {facts['torch']}, commit {commit}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Aligned columns, or a Markdown table."""
    if markdown:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in (header, ["-" * w for w in widths], *rows)
    )
