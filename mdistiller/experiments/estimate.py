"""What runs will cost, before they are started: seconds and bytes.

Seconds are those of finished runs of the same kind where there are any. Otherwise a cost model
counts multiply-accumulates of networks T (teacher) and S (student) for an image: T + 3 S with
one backward pass over the student (forward S, backward 2 S), T + 5 S with one for each loss,
T + 8 S with a second batch for the reference gradient; some timed steps say how many seconds a
multiply-accumulate takes in each network. Runs that share a teacher share T. The input pipeline is
left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from mdistiller.dataset import build_model, image_size, validates_on_heldout
from mdistiller.device import resolve_device
from mdistiller.listing import count_macs

from .job import Job

# Training images, test images, classes.
_DATA = {
    "cifar100": (50_000, 10_000, 100),
    "fashion_mnist": (60_000, 10_000, 10),
    "glyphs": (145_888, 16_168, 94),
    "digits": (1_347, 450, 10),
}
_UNKNOWN_DATA = (50_000, 10_000, 100)

# Forward and backward passes over the student in units of its forward pass; 3 for all others.
_STUDENT_PASSES = {
    "dot": 5,
    "crd_dot": 5,
    "multitask": 5,
    "gradnorm": 5,
    "gradient_cosine": 5,
    "crossbatch": 8,
}
_CALIBRATION_SECONDS = 20.0
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Size:
    """Of a network: multiply-accumulates of one image, and bytes of its state."""

    macs: int
    state_bytes: int


@cache
def network_size(dataset: str, name: str) -> Size:
    """Counted on a network without memory behind it."""
    with torch.device("meta"):
        model = build_model(dataset, name, classes_of(dataset)).eval()
    state = model.state_dict().values()
    return Size(
        count_macs(model, image_size(dataset)), sum(v.numel() * v.element_size() for v in state)
    )


def classes_of(dataset: str) -> int:
    return _DATA.get(dataset, _UNKNOWN_DATA)[2]


def images_of(cfg: Any) -> tuple[int, int]:
    """How many images an epoch trains on and validates on."""
    total, tested, _ = _DATA.get(cfg.DATASET.TYPE, _UNKNOWN_DATA)
    holdout = cfg.DATASET.HOLDOUT
    trained = cfg.DATASET.SUBSET or total - holdout
    validated = holdout if validates_on_heldout(cfg) else tested
    return trained + cfg.DATASET.TRAIN_ON_HOLDOUT * holdout, validated


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of a whole run in its teacher and in its student."""

    teacher: int
    student: int

    @property
    def total(self) -> int:
        return self.teacher + self.student


def work_of(cfg: Any) -> Work:
    """The cost model of this module's docstring, with one validation pass an epoch."""
    dataset = cfg.DATASET.TYPE
    images, tested = images_of(cfg)
    passes = _STUDENT_PASSES.get(cfg.SOLVER.TRAINER, 3)
    student = network_size(dataset, cfg.DISTILLER.STUDENT).macs
    teacher = 0
    if cfg.DISTILLER.TYPE != "NONE":
        teacher = network_size(dataset, cfg.DISTILLER.TEACHER).macs
    epochs = cfg.SOLVER.EPOCHS
    return Work(epochs * images * teacher, epochs * (images * passes + tested) * student)


def disk_of(cfg: Any) -> int:
    """Bytes of a run's checkpoints: the latest, the best and the periodic ones.

    A checkpoint holds student, teacher and the student's momentum, and beside it lies the
    student alone.
    """
    dataset = cfg.DATASET.TYPE
    student = network_size(dataset, cfg.DISTILLER.STUDENT).state_bytes
    teacher = 0
    if cfg.DISTILLER.TYPE != "NONE":
        teacher = network_size(dataset, cfg.DISTILLER.TEACHER).state_bytes
    momenta = 2 if cfg.SOLVER.TYPE == "AdamW" else 1
    periodic = cfg.SOLVER.EPOCHS // cfg.LOG.SAVE_CHECKPOINT_FREQ
    return (2 + periodic) * ((2 + momenta) * student + teacher)


class TimeModel:
    """Seconds of runs, from finished ones and from timed steps.

    Args:
        jobs: the whole plan.
        threads: of one process, for timing steps on a processor.
        fleets: runs that will share process, teacher and data.
    """

    def __init__(
        self, jobs: Iterable[Job], threads: int, fleets: Iterable[Sequence[Job]] = ()
    ) -> None:
        jobs = list(jobs)
        self._sizes = {job: len(fleet) for fleet in fleets for job in fleet}
        self._measured: dict[tuple, list[float]] = {}
        for job in jobs:
            if result := job.result():
                seconds = result["seconds"] / result["epochs"]
                kind = _kind(job.cfg, result.get("fleet", 1))
                self._measured.setdefault(kind, []).append(seconds)
        unknown = [job.cfg for job in jobs if _kind(job.cfg, self._size(job)) not in self._measured]
        self._rates: dict[tuple[str, str], float] = {}
        self._timed_all = True
        self._unknown_data = sorted({j.cfg.DATASET.TYPE for j in jobs} - _DATA.keys())
        if unknown:
            self._calibrate(unknown, threads)

    @property
    def source(self) -> str:
        """How the seconds were found, in words."""
        parts = []
        if self._measured:
            count = sum(map(len, self._measured.values()))
            parts.append(f"{count} finished runs of the same kind")
        if self._rates:
            names = ", ".join(name for _, name in self._rates)
            rest = "" if self._timed_all else ", other networks in proportion to their size"
            parts.append(
                f"{_TIMED_STEPS} timed steps of {names}{rest} and the cost model T + 3 S "
                "(T + 5 S with two gradients, T + 8 S cross-batch; without the input pipeline)"
            )
            for dataset in self._unknown_data:
                parts.append(f"for {dataset} {_UNKNOWN_DATA[0]:,} images are assumed")
        return "; ".join(parts)

    def seconds(self, job: Job) -> float:
        """Of a whole run: its own and its part of what is shared, so that a fleet's add up."""
        cfg, fleet = job.cfg, self._size(job)
        if found := self._measured.get(_kind(cfg, fleet)):
            return statistics.mean(found) * cfg.SOLVER.EPOCHS
        work, dataset = work_of(cfg), cfg.DATASET.TYPE
        rest = work.teacher * self._rate(dataset, cfg.DISTILLER.TEACHER) if work.teacher else 0.0
        return rest / fleet + work.student * self._rate(dataset, cfg.DISTILLER.STUDENT)

    def _size(self, job: Job) -> int:
        return self._sizes.get(job, 1)

    def _rate(self, dataset: str, name: str) -> float:
        if (dataset, name) in self._rates:
            return self._rates[dataset, name]
        return statistics.median(self._rates.values())

    def _calibrate(self, cfgs: list[Any], threads: int) -> None:
        """Time every network, the smallest first, until the time for that is used up."""
        used = {(c.DATASET.TYPE, c.DISTILLER.STUDENT): c for c in cfgs}
        used |= {
            (c.DATASET.TYPE, c.DISTILLER.TEACHER): c for c in cfgs if c.DISTILLER.TYPE != "NONE"
        }
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        began = time.perf_counter()
        try:
            for (dataset, name), cfg in sorted(
                used.items(), key=lambda item: network_size(*item[0]).macs
            ):
                if time.perf_counter() - began > _CALIBRATION_SECONDS:
                    self._timed_all = False
                    return
                seconds = _time_step(dataset, name, cfg)
                per_image = 3 * network_size(dataset, name).macs
                self._rates[dataset, name] = seconds / cfg.SOLVER.BATCH_SIZE / per_image
        finally:
            torch.set_num_threads(before)


def _kind(cfg: Any, fleet: int) -> tuple[Any, ...]:
    """Runs of one kind cost the same per epoch, be a fleet of two or of ten."""
    teacher = None if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TEACHER
    return (
        *(cfg.DATASET.TYPE, teacher, cfg.DISTILLER.STUDENT, cfg.DISTILLER.TYPE),
        *(cfg.SOLVER.TRAINER, cfg.SOLVER.BATCH_SIZE, *images_of(cfg), fleet > 1),
    )


def _time_step(dataset: str, name: str, cfg: Any) -> float:
    """Median seconds of a forward and a backward pass over one batch of random images."""
    device = resolve_device(cfg.SOLVER.DEVICE)
    model: nn.Module = build_model(dataset, name, classes_of(dataset)).to(device).train()
    size = image_size(dataset)
    images = torch.randn(cfg.SOLVER.BATCH_SIZE, 3, size, size, device=device)
    seconds = []
    for _ in range(_TIMED_STEPS + 1):
        began = time.perf_counter()
        model(images)[0].sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
