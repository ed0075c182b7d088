"""What all loaders share: epochs, named random streams, skipping, contrastive samples."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from mdistiller.device import moved
from mdistiller.errors import ConfigError
from mdistiller.seeding import generator

from ._contrastive import ContrastiveSampler, ContrastiveSettings


class Labelled(Protocol):
    """What a loader asks of a data set.

    Attributes:
        targets: class labels, a tensor [N] or a list of N.
    """

    targets: Any

    def __len__(self) -> int: ...


class Answers(Protocol):
    """A teacher's answers to every variant of every image of a whole data set."""

    def rows(self, index: Tensor, variant: Tensor) -> Tensor: ...


class Loader(ABC):
    """Batches of a data set, a pure function of (seed, stream name, epoch).

    A training loader shuffles and yields ``(image, target, index)``, or
    ``(image, target, index, contrastive_index, strong, answers)`` up to the last one that is asked
    for; any other keeps the order of the data set and yields ``(image, target)``:

    * ``image`` [B, 3, H, W] float32, normalised; ``target`` [B] int64, the class labels;
    * ``index`` [B] int64, the images' positions in the data set;
    * ``contrastive_index`` [B, K + 1] int64, the positive's position and K negatives';
    * ``strong`` [B, 3, H, W] float32, the same images under strong augmentation;
    * ``answers`` [B, width], the rows of :attr:`answers` for the images as they are augmented.

    Of the last three, what is not asked for has no columns.

    The last batch of an epoch may be smaller; none is left out. A batch size beyond the size of
    the data set gives one batch with everything. Each pass takes the next epoch, counted
    from 1, unless :meth:`set_epoch` says otherwise. The global random generators are not used.

    Args:
        dataset: has ``len()`` and ``targets`` [N] int64.
        batch_size: images per batch, at least 1.
        train: shuffle, augment and yield the index.
        seed: of the run (``EXPERIMENT.SEED``).
        contrast: settings for contrastive samples; None if the run needs none.
        strong: yield a second view of each image.

    Attributes:
        mean, std: with which the channels of images in 0..1 are normalised; None if unknown.
        wrong_labels: of a training loader, the fraction of its labels that ``DATASET.LABEL_NOISE``
            made wrong; None where the data set knows nothing of that key.
        heldout: of a training loader, one like it of the images of ``DATASET.HOLDOUT``, for
            which nothing is contrasted; None if there are none.
        answers: a teacher's answers, to be given with each batch; None for none. Only a loader
            that knows its images' variants can.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    wrong_labels: float | None = None
    heldout: Loader | None = None
    answers: Answers | None = None

    def __init__(
        self,
        dataset: Labelled,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        contrast: ContrastiveSettings | None = None,
        strong: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.name = "train" if train else "val"
        self.strong = strong and train
        self._contrast = contrast
        self._sampler = self._make_sampler() if contrast else None
        self._next_epoch = 1
        self._rank, self._shards = 0, 1

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` (counted from 1) the epoch of the next pass."""
        self._next_epoch = epoch

    def stream(
        self,
        name: str,
        batch_size: int | None = None,
        contrastive: bool = False,
        strong: bool = False,
        answers: bool = False,
    ) -> Loader:
        """A loader over the same data, in memory once, with a random stream of its own.

        Args:
            name: of the stream; the main one is "train".
            batch_size: None stands for this loader's.
            contrastive: yield contrastive indices too; needs a run that has settings for them.
            strong: yield a second view of each image too.
            answers: yield the teacher's answers too, where this loader does.
        """
        other = copy.copy(self)
        other.answers = self.answers if answers else None
        other.name = name
        other.batch_size = self.batch_size if batch_size is None else batch_size
        other._sampler = (self._sampler or self._make_sampler()) if contrastive else None
        other.strong = strong and self.train
        other._next_epoch = 1
        return other

    def heldout_stream(self, name: str, batch_size: int | None = None) -> Loader:
        """A :meth:`stream` of the images that are held out from this loader.

        Raises:
            ConfigError: there are none.
        """
        if self.heldout is None:
            raise ConfigError(
                "no training images are held out; set DATASET.HOLDOUT to their number"
            )
        other = self.heldout.stream(name, batch_size or self.batch_size)
        return other.shard(self._rank, self._shards)

    def shard(self, rank: int, shards: int) -> Loader:
        """A loader of the same batches that yields the ``rank``-th of ``shards`` parts of each.

        The parts differ by one image at most. Where a batch has too few images for all, the
        part is the batch's first image, so that it is never empty; :meth:`local_size` is then 0.
        """
        other = copy.copy(self)
        other._rank, other._shards = rank, shards
        return other

    def global_size(self, number: int) -> int:
        """How many images all shards of batch ``number`` (from 0) hold."""
        return min(self.batch_size, len(self.dataset) - number * self.batch_size)

    def local_size(self, number: int) -> int:
        """How many images of batch ``number`` count as this shard's."""
        first, last = self._bounds(number)
        return last - first

    def _bounds(self, number: int) -> tuple[int, int]:
        # Rounded up, so that the first shard is the last one to become empty.
        size, shards = self.global_size(number), self._shards
        return -(-size * self._rank // shards), -(-size * (self._rank + 1) // shards)

    def _rows(self, number: int) -> slice:
        """Where batch ``number``'s images are in the order of an epoch."""
        start = number * self.batch_size
        first, last = self._bounds(number)
        return slice(start + first, start + last) if first < last else slice(start, start + 1)

    def iterate(self, start_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """One pass from batch ``start_batch`` on; what is skipped costs no work.

        Raises:
            ValueError: ``start_batch`` is negative or greater than the number of batches.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch must lie in 0..{len(self)}, not {start_batch}")
        epoch = self._next_epoch
        self._next_epoch += 1
        return self._run(epoch, start_batch)

    def _run(self, epoch: int, start_batch: int) -> Iterator[tuple[Tensor, ...]]:
        order = self._order(epoch)
        batches = self._batches(epoch, order, start_batch)
        shown = None if self.answers is None else self._shown(epoch, order)
        for number, (image, target, index, *strong) in enumerate(batches, start_batch):
            if not self.train:
                yield image, target
                continue
            if self._sampler is None and self.answers is None and not strong:
                yield image, target, index
                continue
            rows = self._rows(number)
            # From the order, not from index, which may be on another device.
            own, drawn, answers = order[rows], None, None
            if self._sampler is not None:
                drawn = self._sampler.sample(own, self.seed, self.name, epoch, "contrast", number)
                drawn = moved(drawn, index.device)
            if self.answers is not None and shown is not None:
                image_of_whole, variant = (x[rows] for x in shown)
                answers = moved(self.answers.rows(image_of_whole, variant), index.device)
            beside = [drawn, strong[0] if strong else None, answers]
            while beside and beside[-1] is None:
                beside.pop()
            nothing = index.new_empty(len(index), 0)
            yield image, target, index, *(nothing if x is None else x for x in beside)

    def _shown(self, epoch: int, order: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image of ``order`` [N], on the CPU: its place in the whole set, from which the
        images of this loader may have been chosen, and the number of its crop and flip."""
        raise ConfigError(f"{type(self).__name__} does not know its images' variants")

    def _order(self, epoch: int) -> Tensor:
        total = len(self.dataset)
        if not self.train:
            return torch.arange(total)
        return torch.randperm(total, generator=self._generator(epoch, "order"))

    def _generator(self, epoch: int, purpose: str) -> torch.Generator:
        return generator(self.seed, self.name, epoch, purpose)

    def _make_sampler(self) -> ContrastiveSampler:
        if self._contrast is None:
            raise ValueError("contrastive=True needs a loader that was built with settings for it")
        return ContrastiveSampler(torch.as_tensor(self.dataset.targets), self._contrast)

    @abstractmethod
    def _batches(self, epoch: int, order: Tensor, start_batch: int) -> Iterator[tuple[Tensor, ...]]:
        """(image, target, index) of each batch of ``order`` [N] (on the CPU) from one on.

        With :attr:`strong` the second view follows.
        """
