"""What runs will cost, before they are started: seconds and bytes.

Some timed steps say what an image costs in each network, and a cost model counts passes: with a
forward pass T of the teacher and S of the student, a step costs T + 3 S with one backward pass,
T + 5 S with one for each loss, T + 8 S with a second batch for the reference gradient. Runs that
share a teacher share T. The input pipeline is left out.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import nn

from mdistiller.config import Config
from mdistiller.dataset import build_model, image_size, validates_on_heldout
from mdistiller.device import resolve_device
from mdistiller.listing import count_macs

from .speeds import Speeds

# Training images, test images, classes.
DATA = {
    "cifar100": (50_000, 10_000, 100),
    "fashion_mnist": (60_000, 10_000, 10),
    "glyphs": (145_888, 16_168, 94),
    "digits": (1_347, 450, 10),
    "tiny_imagenet": (100_000, 10_000, 200),
    "imagenet": (1_281_167, 50_000, 1000),
}
_UNKNOWN_DATA = (50_000, 10_000, 100)

# Passes over the student in units of its forward pass; 3 for all others.
_PASSES = {"dot": 5, "crd_dot": 5, "multitask": 5, "gradnorm": 5, "gradient_cosine": 5}
_PASSES_OF_REFERENCE = 3

_TIMED_STEPS = 3
_TIMING_SECONDS = 20.0


def images_of(cfg: Config) -> tuple[int, int]:
    """How many images an epoch trains on and validates on."""
    tested = DATA.get(cfg.DATASET.TYPE, _UNKNOWN_DATA)[1]
    data = cfg.DATASET
    trained = data.SUBSET or _whole(cfg) - data.HOLDOUT
    if data.TRAIN_ON_HOLDOUT:
        trained += data.HOLDOUT
    return trained, data.HOLDOUT if validates_on_heldout(cfg) else tested


def trained_share(cfg: Config) -> float:
    """The part of the training set that an epoch trains on."""
    return images_of(cfg)[0] / _whole(cfg)


def _whole(cfg: Config) -> int:
    return DATA.get(cfg.DATASET.TYPE, _UNKNOWN_DATA)[0]


class Estimate:
    """Seconds and bytes of runs.

    Args:
        threads: of one process.
        speeds: of the machine that is to train; None for this one.
    """

    def __init__(self, threads: int, speeds: Speeds | None = None) -> None:
        self._threads, self._used, self._speeds = threads, 0.0, speeds
        self._timed: dict[tuple[str, str, int], float] = {}

    @property
    def source(self) -> str:
        """How the seconds so far were found, in words."""
        if self._speeds:
            return f"{self._speeds.source}, and the cost model of docs"
        names = ", ".join(name for _, name, _ in self._timed)
        return (
            f"the fastest of {_TIMED_STEPS} steps of {names} and the cost model of docs; "
            "other work on this machine adds to it"
        )

    def seconds(self, cfg: Config, fleet: int = 1) -> float:
        """Of a whole run: its own and its part of what a fleet of that size shares."""
        images, tested = images_of(cfg)
        student = self._image_seconds(cfg, cfg.DISTILLER.STUDENT)
        teacher = 0.0
        if cfg.DISTILLER.TYPE != "NONE" and not cfg.DISTILLER.TEACHER_CACHE:
            teacher = self._teacher_seconds(cfg) / fleet
        views = 2 if cfg.DATASET.STRONG_VIEW else 1
        step = views * images * (teacher + passes_of(cfg) * student) + tested * student
        return cfg.SOLVER.EPOCHS * step

    def pass_seconds(self, cfg: Config) -> float:
        """Of the teacher over the whole training set."""
        return _whole(cfg) * self._teacher_seconds(cfg)

    def disk(self, cfg: Config) -> int:
        """Bytes of a run's checkpoints: the latest, the best and the periodic ones.

        A checkpoint holds student, teacher and the student's momentum, and beside it lies the
        student alone.
        """
        student = _bytes(*_key(cfg, cfg.DISTILLER.STUDENT))
        distils = cfg.DISTILLER.TYPE != "NONE"
        teacher = _bytes(*_key(cfg, cfg.DISTILLER.TEACHER)) if distils else 0
        momenta = 2 if cfg.SOLVER.TYPE == "AdamW" else 1
        periodic = cfg.SOLVER.EPOCHS // cfg.LOG.SAVE_CHECKPOINT_FREQ
        return (2 + periodic) * ((2 + momenta) * student + teacher)

    def _teacher_seconds(self, cfg: Config) -> float:
        """Of a forward pass of the teacher over one image."""
        name = cfg.DISTILLER.TEACHER
        if self._speeds:
            return _measured(_key(cfg, name), self._speeds.forward)
        return self._image_seconds(cfg, name)

    def _image_seconds(self, cfg: Config, name: str) -> float:
        """Of a forward pass of the network ``name`` over one image, as a part of a step."""
        key = _key(cfg, name)
        if self._speeds:
            return _measured(key, self._speeds.backward) / 3
        if key not in self._timed and self._used < _TIMING_SECONDS:
            began = time.perf_counter()
            self._timed[key] = self._time(cfg, name)
            self._used += time.perf_counter() - began
        if key in self._timed:
            return self._timed[key]
        # In proportion to its size, when the time for timing is over.
        rates = (seconds / _macs(*other) for other, seconds in self._timed.items())
        return _macs(*key) * statistics.median(rates)

    def _time(self, cfg: Config, name: str) -> float:
        """A third of a forward and a backward pass over a batch of random images, by image."""
        key = _key(cfg, name)
        device, size = resolve_device(cfg.SOLVER.DEVICE), image_size(key[0], key[2])
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        model = _network(*key).to(device).train()
        images = torch.randn(cfg.SOLVER.BATCH_SIZE, 3, size, size, device=device)
        seconds = []
        for _ in range(_TIMED_STEPS + 1):
            began = time.perf_counter()
            model(images)[0].sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        torch.set_num_threads(before)
        # The first one also plans its memory. Whatever else runs here only adds to a step.
        return min(seconds[1:]) / len(images) / 3


def _measured(key: tuple[str, str, int], seconds: Mapping[str, float]) -> float:
    """Of one image, from those of CIFAR-100, for which the networks were measured.

    In proportion to multiply-accumulates where the images are of another size or the network was
    not measured.
    """
    alike = [key[1]] if key[1] in seconds else list(seconds)
    return _macs(*key) * statistics.median(seconds[n] / _macs("cifar100", n, 0) for n in alike)


def passes_of(cfg: Config) -> float:
    """Passes over the student in a step, in units of its forward pass."""
    if cfg.SOLVER.TRAINER != "crossbatch":
        return _PASSES.get(cfg.SOLVER.TRAINER, 3)
    node = cfg.CROSSBATCH
    if node.REFERENCE in ("same", "previous"):
        return 5
    part = (node.BATCH_SIZE or cfg.SOLVER.BATCH_SIZE) / cfg.SOLVER.BATCH_SIZE
    return 5 + _PASSES_OF_REFERENCE * part / node.PERIOD


def _key(cfg: Config, name: str) -> tuple[str, str, int]:
    """What a network is built from: data set, name, DATASET.IMAGE_SIZE."""
    return cfg.DATASET.TYPE, name, cfg.DATASET.IMAGE_SIZE


def _network(dataset: str, name: str, size: int) -> nn.Module:
    return build_model(dataset, name, DATA.get(dataset, _UNKNOWN_DATA)[2], size)


@cache
def _macs(dataset: str, name: str, size: int) -> int:
    """Multiply-accumulates of one image."""
    with torch.device("meta"):
        network = _network(dataset, name, size).eval()
    return count_macs(network, image_size(dataset, size))


@cache
def _bytes(dataset: str, name: str, size: int) -> int:
    """Of a network's state."""
    with torch.device("meta"):
        state = _network(dataset, name, size).state_dict().values()
    return sum(v.numel() * v.element_size() for v in state)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last of several processes ends, the longest begun first, ``workers`` at a time."""
    free = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)


# ---- in words --------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """E.g. "37 s", "4 min", "1 h 12 min", "3 d 4 h".

    Examples:
        >>> duration(4321)
        '1 h 12 min'
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def size(number: float) -> str:
    """Bytes in words, e.g. "54 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
