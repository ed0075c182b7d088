"""One training in several processes under torchrun: who they are and what they exchange.

Every process draws the same global batches and takes its shard of each; gradients are summed,
each weighted by its shard's fraction of the batch, before anything is computed from them. The
first process (rank 0) alone writes files and prints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mdistiller.device import resolve_device
from mdistiller.errors import ConfigError, MdistillerError

from .loaders import Batches, Shardable, shardable


class World:
    """The processes of this training; a single one exchanges nothing.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.size = dist.get_world_size() if joined else 1

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        if len(tensors) == 1 and tensors[0].is_contiguous():
            _exchange(dist.all_reduce, tensors[0])
            return
        flat = torch.cat([t.flatten() for t in tensors])
        _exchange(dist.all_reduce, flat)
        parts = flat.split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value`` (anything that pickle can copy), by rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        _exchange(dist.all_gather_object, found, value)
        return found

    def from_writer(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns in the first process, which alone calls it, in all of them.

        If it fails there, all end as in :meth:`fail_together`.
        """
        if self.size == 1:
            return make()
        with self.fail_together():
            found = [make() if self.is_writer else None]
        _exchange(dist.broadcast_object_list, found, 0)
        return found[0]

    def copy_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers, such as BatchNorm's running statistics."""
        if self.size == 1:
            return
        for buffer in module.buffers():
            _exchange(dist.broadcast, buffer, 0)

    def assert_agreement(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raises MdistillerError if the processes' weights are not the same."""
        if self.size == 1:
            return
        sums = torch.stack([p.detach().double().sum() for p in parameters]).tolist()
        if any(other != sums for other in self.gather(sums)):
            raise MdistillerError(
                "the processes' weights have drifted apart; start them with the same versions, "
                "or report this with the configuration"
            )

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """If one process fails inside, all of them end here, and one of them says why."""
        if self.size == 1:
            yield
            return
        error: MdistillerError | None = None
        try:
            yield
        except MdistillerError as caught:
            error = caught
        codes = self.gather(error and error.exit_code)
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return
        if error is not None and failed[0] == self.rank:
            raise error
        # Not the error itself: its line would be printed by every process.
        raise SystemExit(codes[failed[0]])


def _exchange(operation: Any, *arguments: Any) -> None:
    try:
        operation(*arguments)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise MdistillerError(
            f"another process of this training stopped ({reason}); its own message says why, "
            "the same command with --resume continues"
        ) from None


@contextmanager
def joined_by_torchrun(device: str) -> Iterator[World]:
    """Join the other processes if torchrun started this one; without it, a world of one.

    Args:
        device: SOLVER.DEVICE; on CUDA, each process of a machine takes the next GPU.

    Raises:
        ConfigError: the device is one GPU, or there are not enough of them.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    kind = resolve_device(device).type
    if kind == "cuda":
        local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if ":" in device or local >= present:
            raise ConfigError(
                "SOLVER.DEVICE must be auto, cuda or cpu under torchrun, with at least as many "
                f"GPUs as processes on each machine, not {device} with {present}"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    world = World()
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nothing,
            redirect_stdout(sys.stdout if world.is_writer else nothing),
        ):
            yield world
    finally:
        # torch 2.6 waits for gloo's threads while it holds Python's lock, which one of them may
        # need to free the last exchange's tensors: let them have it first, or both wait forever.
        time.sleep(0.1)
        dist.destroy_process_group()


def shard_of(loader: Batches, world: World, batch_size: int, able: dict[type, bool]) -> Batches:
    """What this process sees of ``loader``; all of it in a world of one.

    Args:
        batch_size: SOLVER.BATCH_SIZE, that of all processes.
        able: whether what else takes part works on a part of a batch, by its class.

    Raises:
        ConfigError: something does not, or the batch is too small.
    """
    if world.size == 1:
        return loader
    for cls, can in {**able, type(loader): isinstance(loader, Shardable)}.items():
        if not can:
            raise ConfigError(
                f"{cls.__name__} does not work in several processes; run without torchrun"
            )
    if batch_size < world.size:
        raise ConfigError(
            f"SOLVER.BATCH_SIZE {batch_size} is the batch of all {world.size} processes; "
            "set it to their number at least"
        )
    return shardable(loader).shard(world.rank, world.size)


def fraction_of(loader: Batches, number: int) -> float:
    """This process's part of the images in batch ``number`` (from 0) of ``loader``."""
    shards = shardable(loader)
    return shards.local_size(number) / shards.global_size(number)
