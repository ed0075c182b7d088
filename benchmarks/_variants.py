"""The ways to take a training step that benchmarks/step.py compares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import _common as common
import torch

from mdistiller.engine import BaseTrainer, Batch, StepResult
from mdistiller.engine.epoch import EpochState
from mdistiller.engine.meters import accuracy
from mdistiller.experiments.fleet.clock import SharedTime
from mdistiller.experiments.fleet.sharing import Shared
from mdistiller.seeding import global_state, set_global_state
from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics

# Batches of the toy data; more than one epoch is never timed, so their number does not matter.
BATCHES = 20

# Written anew after mdistiller's code, so it is called what it is.
RECREATION = "re-creation"
# The same in a process without this project's allocator settings.
OWN_PROCESS = "re-creation, own process"

# A checkout of the original, given by --original.
ORIGINAL = "original"


class RecreatedStep:
    """A vanilla step as mdistiller takes it, written anew."""

    def __init__(self, cfg: Any, data: Any, device: torch.device) -> None:
        self.device = device
        self.distiller = common.networks(cfg).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.distiller.get_learnable_parameters(),
            lr=cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )
        self.batches = _endless(data)

    def __call__(self) -> None:
        image, target, index = (x.to(self.device, non_blocking=True) for x in next(self.batches))
        self.optimizer.zero_grad()
        logits, losses = self.distiller(image=image, target=target, index=index, epoch=1)
        loss = sum(loss.mean() for loss in losses.values())
        loss.backward()
        self.optimizer.step()
        loss.item()
        for top in accuracy(logits, target, topk=(1, 5)):
            top.item()


class TrainerStep:
    """A step of one of this project's trainers, its bookkeeping included."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self.trainer = trainer
        self.sums = EpochState()
        self.batches = _epochs(trainer)

    def __call__(self) -> None:
        batch = next(self.batches)
        self.sums.add(self.trainer.step(batch, 1), batch)


class LoopStep:
    """A cross-batch step of somebody's own loop, over a trainer's networks and batches."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self.distiller, self.optimizer = trainer.distiller, trainer.optimizer
        self.batches = _epochs(trainer)
        self.weighting = CrossBatchWeighting()

    def __call__(self) -> None:
        batch, student = next(self.batches), self.distiller.student
        self.optimizer.zero_grad()
        with frozen_statistics(student):
            logits, _ = student(batch.auxiliary.image)
            unseen = torch.nn.functional.cross_entropy(logits, batch.auxiliary.target)
        _, losses = self.distiller(**batch.inputs(1))
        cross_batch_backward(
            self.distiller.split_losses(losses),
            reference=unseen,
            inputs=student.parameters(),
            weighting=self.weighting,
        )
        self.optimizer.step()


class FleetStep:
    """A step of the next student of several that share batches and teacher (a fleet)."""

    def __init__(self, trainers: list[BaseTrainer]) -> None:
        self.shared = Shared(SharedTime().shared)
        for trainer in trainers:
            self.shared.add_streams(trainer)
            assert self.shared.add_teacher(trainer.distiller)
        self.members = [TrainerStep(trainer) for trainer in trainers]
        self.random = [global_state() for _ in trainers]
        self.turn = 0

    def __call__(self) -> None:
        set_global_state(self.random[self.turn])
        self.members[self.turn]()
        self.random[self.turn] = global_state()
        self.turn = (self.turn + 1) % len(self.members)
        if self.turn == 0:
            self.shared.end_round()


class TorchjdTrainer(BaseTrainer):
    """The two losses' gradients by torchjd, with an aggregator of its own."""

    aggregator: Any

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        from torchjd.autojac import backward, jac_to_grad

        logits, losses = self.distiller(**batch.inputs(epoch))
        parameters = self.distiller.get_learnable_parameters()
        backward(list(self.distiller.split_losses(losses)), inputs=parameters)
        jac_to_grad(parameters, self.aggregator)
        return StepResult(logits, losses)


def _torchjd(name: str, **arguments: Any) -> Callable[[], type[BaseTrainer]]:
    def make() -> type[BaseTrainer]:
        import torchjd.aggregation

        aggregator = getattr(torchjd.aggregation, name)(**arguments)
        return type(f"Torchjd{name}", (TorchjdTrainer,), {"aggregator": aggregator})

    return make


def _endless(data: Any) -> Iterator[tuple[torch.Tensor, ...]]:
    while True:
        yield from data


def _epochs(trainer: BaseTrainer) -> Iterator[Batch]:
    epoch = 0
    while True:
        epoch += 1
        yield from trainer.batches(epoch)


@dataclass(frozen=True)
class Variant:
    """One way to take a step.

    Attributes:
        cost: its passes beside the teacher's, a student forward pass being 1.
        vanilla: what it is compared with: the vanilla step with the same settings.
        crossbatch: whether it needs the cross-batch distiller and trainer.
        opts: overrides of the configuration.
        trainer: makes the trainer class; None for the configuration's.
        cycle: steps after which its costs repeat.
        fleet: how many students take turns; a step is one student's.
        loop: without the trainer, by cross_batch_backward; compared with the trainer's step.
        cached: whether the teacher's answers come from a file.
    """

    cost: float
    vanilla: str = "vanilla"
    crossbatch: bool = False
    opts: tuple[Any, ...] = ()
    trainer: Callable[[], type[BaseTrainer]] | None = None
    cycle: int = 1
    fleet: int = 1
    loop: bool = False
    cached: bool = False


_WAYS = {
    "vanilla": Variant(3),
    "crossbatch": Variant(8, crossbatch=True),
    "previous": Variant(5, crossbatch=True, opts=("CROSSBATCH.REFERENCE", "previous")),
    "period 10": Variant(3.5, crossbatch=True, opts=("CROSSBATCH.PERIOD", 10), cycle=10),
}
BF16 = ("SOLVER.AMP", "bf16")
COMPILE = ("SOLVER.COMPILE", True)


def _with(suffix: str, *opts: Any, ways: tuple[str, ...] = tuple(_WAYS)) -> dict[str, Variant]:
    """Some of the ways with ``opts`` on."""
    return {
        f"{name} {suffix}": replace(
            _WAYS[name], vanilla=f"vanilla {suffix}", opts=(*_WAYS[name].opts, *opts)
        )
        for name in ways
    }


VARIANTS: dict[str, Variant] = {
    ORIGINAL: Variant(3),
    RECREATION: Variant(3),
    OWN_PROCESS: Variant(3),
    **_WAYS,
    "own loop": Variant(8, vanilla="crossbatch", crossbatch=True, loop=True),
    **_with("compiled", *COMPILE, ways=("vanilla", "crossbatch")),
    **{
        f"{name} cached": replace(way, cached=True, vanilla="vanilla cached")
        for name, way in _WAYS.items()
    },
    **_with("bf16", *BF16),
    **_with("bf16 compiled", *BF16, *COMPILE, ways=("vanilla", "crossbatch")),
    "torchjd MGDA": Variant(5, trainer=_torchjd("MGDA")),
    "torchjd CAGrad": Variant(5, trainer=_torchjd("CAGrad", c=0.5)),
}


def build(
    name: str, method: str, args: argparse.Namespace, device: torch.device
) -> RecreatedStep | TrainerStep | FleetStep | LoopStep:
    """Something to call once per step; ImportError where a package is missing."""
    variant = VARIANTS[name]
    distiller, opts = method, ("SOLVER.BATCH_SIZE", args.batch_size, *variant.opts)
    if variant.crossbatch:
        distiller, opts = f"CROSSBATCH_{method}", (*opts, "SOLVER.TRAINER", "crossbatch")
    cfg = common.config(args.pair, distiller, args.device, *opts)
    images = common.random_images(BATCHES * args.batch_size)
    data = common.loader(images, args.batch_size, device)
    if name in (RECREATION, OWN_PROCESS):
        return RecreatedStep(cfg, data, device)
    cls = variant.trainer() if variant.trainer else None
    trainers = [common.trainer(cfg, data, cls) for _ in range(variant.fleet)]
    if variant.loop:
        return LoopStep(*trainers)
    if variant.cached:
        common.answer_from_a_file(cfg, trainers[0], data)
    return TrainerStep(*trainers) if variant.fleet == 1 else FleetStep(trainers)
