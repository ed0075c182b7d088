"""What a training asks of a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable


class Batches(Protocol):
    """A pass over a data set, any number of times; a list of batches will do.

    Where a loader has them, ``set_epoch``, ``iterate``, ``stream`` and ``heldout_stream`` are
    used as :class:`mdistiller.dataset.Loader` describes them.
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class Shardable(Batches, Protocol):
    """One of which each of several processes can take its part of every batch."""

    def shard(self, rank: int, shards: int) -> Batches: ...
    def global_size(self, number: int) -> int: ...
    def local_size(self, number: int) -> int: ...


def shardable(loader: object) -> Shardable:
    """``loader`` itself, if it can be shared by several processes.

    Raises:
        TypeError: it cannot.
    """
    if not isinstance(loader, Shardable):
        raise TypeError(
            f"{type(loader).__name__} lacks shard, global_size or local_size, which a loader "
            "needs in several processes"
        )
    return loader
