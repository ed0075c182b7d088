"""Meters, accuracy and validation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.device import solve_dtype

from .runtime.distributed import World


class AverageMeter:
    """A running average of numbers on the host; ``val`` is the latest one."""

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
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._count = 0
        self._continued = False

    def update(self, values: dict[str, Tensor], n: int = 1) -> None:
        """Add the scalars ``values``, each counting ``n`` times; the names stay the same."""
        if not values:
            return
        stacked = torch.stack([v.detach().reshape(()) for v in values.values()])
        # Double precision where there is any: an epoch adds up tens of thousands of numbers.
        stacked = stacked.to(solve_dtype(stacked.device))
        if self._continued and self._names != tuple(values):
            # The checkpoint of a version that logged other quantities: its sums are of no use.
            self.reset()
        self._continued = False
        if self._sums is None:
            self._names, self._sums = tuple(values), torch.zeros_like(stacked)
        self._sums += stacked * n
        self._count += n

    def averages(self, world: World | None = None) -> dict[str, float]:
        """The averages so far, of all processes of ``world``; one host read."""
        if self._sums is None:
            return {}
        sums, count = self._sums, self._count
        if world is not None and world.size > 1:
            total = torch.cat([sums, sums.new_tensor([count])])
            world.sum_([total])
            sums, count = total[:-1], total[-1]
        return dict(zip(self._names, (sums / count).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which :meth:`load_state_dict` continues."""
        sums = None if self._sums is None else self._sums.clone().cpu()
        return {"names": list(self._names), "sums": sums, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; if other names follow, the averages begin anew."""
        self._names = tuple(state["names"])
        self._sums, self._count = state["sums"], state["count"]
        self._continued = self._sums is not None


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
        world: processes that each hold a piece of ``val_loader``; the result is over all.
    """
    like = next(distiller.parameters())
    was_training = distiller.training
    distiller.eval()
    meter = DeviceMeter()
    pieces = world is not None and world.size > 1
    for number, (image, target, *_) in enumerate(val_loader):
        image = image.to(like, non_blocking=True)
        target = target.to(like.device, non_blocking=True)
        output = distiller(image=image)
        top1, top5 = accuracy(output, target, topk=(1, 5))
        loss = F.cross_entropy(output, target)
        n = val_loader.count(number) if pieces else image.shape[0]
        meter.update({"top1": top1, "top5": top5, "loss": loss}, n)
    distiller.train(was_training)
    means = meter.averages(world)
    return means["top1"], means["top5"], means["loss"]
