"""Meters, accuracy and validation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.device import solve_dtype

from .runtime.distributed import World
from .runtime.loaders import shardable


class AverageMeter:
    """A running average of numbers on the host; ``val`` is the latest one."""

    val: float
    avg: float
    sum: float
    count: int

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


class DeviceMeter:
    """Weighted averages of named scalars, summed on the device and read only on request.

    Reading a number stops the host until the device has caught up, so a step only adds.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Of each set of names, which is nearly always the same: sums and what they are divided by.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def update(self, values: dict[str, Tensor], n: int = 1) -> None:
        """Add scalars (shape [] or [1]) with weight ``n``."""
        if not values:
            return
        names = tuple(values)
        stacked = torch.stack([v.detach().reshape(()) for v in values.values()])
        sums = self._sums.get(names)
        if sums is None:
            # Double precision where there is any: an epoch adds up tens of thousands of numbers.
            dtype = solve_dtype(stacked.device)
            sums = self._sums[names] = torch.zeros_like(stacked, dtype=dtype)
            self._counts[names] = 0
        sums += stacked.to(sums.dtype) * n
        self._counts[names] += n

    def averages(self, world: World | None = None) -> dict[str, float]:
        """Each name's average over the times it was given, in all processes of ``world``.

        One host read.
        """
        totals: dict[str, list[float]] = {}
        own = [(n, s.tolist(), self._counts[n]) for n, s in self._sums.items()]
        for sets in [own] if world is None else world.gather(own):
            for names, sums, count in sets:
                for name, value in zip(names, sums, strict=True):
                    total = totals.setdefault(name, [0.0, 0])
                    total[0] += value
                    total[1] += count
        # Of a process whose only images were stand-ins nothing counts.
        return {name: value / count for name, (value, count) in totals.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which :meth:`load_state_dict` continues."""
        return {
            "sets": [(list(n), s.clone().cpu(), self._counts[n]) for n, s in self._sums.items()]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, also an earlier version's with one set of names."""
        sets = state.get("sets", ())
        if state.get("sums") is not None:
            sets = [(state["names"], state["sums"], state["count"])]
        self._sums = {tuple(names): sums for names, sums, _ in sets}
        self._counts = {tuple(names): count for names, _, count in sets}


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Percentage of samples whose label is among the k largest logits, for each k.

    Args:
        output: [B, C]; a k beyond C counts as C.
        target: [B].
        topk: the values of k.

    Returns:
        One tensor of shape [1] per k.
    """
    depth = min(max(topk), output.shape[1])
    hits = output.topk(depth, dim=1).indices == target[:, None]
    return [hits[:, :k].any(dim=1).float().mean().reshape(1) * 100 for k in topk]


@torch.no_grad()
def validate(
    val_loader: Iterable, distiller: nn.Module, world: World | None = None
) -> tuple[float, float, float]:
    """Top-1 and top-5 accuracy in percent, and mean cross-entropy, in eval mode.

    Args:
        val_loader: yields (image [B, 3, H, W], target [B]).
        distiller: called as ``distiller(image=image)``, returns logits [B, C].
        world: processes that each see a part of ``val_loader``; the result is over all.
    """
    like = next(distiller.parameters())
    was_training = distiller.training
    distiller.eval()
    meter = DeviceMeter()
    shards = shardable(val_loader) if world is not None and world.size > 1 else None
    for number, (image, target, *_) in enumerate(val_loader):
        image = image.to(like, non_blocking=True)
        target = target.to(like.device, non_blocking=True)
        output = distiller(image=image)
        top1, top5 = accuracy(output, target, topk=(1, 5))
        loss = F.cross_entropy(output, target)
        n = image.shape[0] if shards is None else shards.local_size(number)
        meter.update({"top1": top1, "top5": top5, "loss": loss}, n)
    distiller.train(was_training)
    means = meter.averages(world)
    return means["top1"], means["top5"], means["loss"]
