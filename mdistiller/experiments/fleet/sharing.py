"""One stream of batches and one teacher for several trainings that go in step.

Nothing is taken on trust: a batch or an answer of the teacher that someone has changed in place
is made anew for the next one who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mdistiller.distillers import Distiller
from mdistiller.engine.batch import DeviceTransform, epoch_of
from mdistiller.engine.runtime.loaders import Batches
from mdistiller.engine.runtime.precision import FloatFeatures, same_tensors
from mdistiller.engine.trainers.base import BaseTrainer

_Timed = Callable[[], AbstractContextManager[None]]


class _Versioned:
    """A value and how often its tensors had been changed when it was made."""

    def __init__(self, value: Any, tensors: Iterable[Tensor]) -> None:
        self.value = value
        self._versions = [(t, t._version) for t in tensors]

    @property
    def intact(self) -> bool:
        return all(t._version == version for t, version in self._versions)


class SharedStream:
    """The batches of a loader, each made once for all who read them side by side.

    The latest batch is kept. Whoever asks for another one than it or the next gets that too,
    but the pass over the data begins anew there.

    Args:
        loader: a pure function of epoch and position; used by nobody else.
        place: what every reader would do to a batch.
        timed: around the work that is done for all.
    """

    def __init__(
        self,
        loader: Batches,
        place: DeviceTransform,
        timed: _Timed,
    ) -> None:
        self.loader = loader
        self._place, self._timed = place, timed
        self._pass: Iterator[tuple[Tensor, ...]] = iter(())
        self._at: tuple[int, int] | None = None
        self._latest = _Versioned((), ())

    def batch(self, epoch: int, number: int) -> tuple[Tensor, ...]:
        """Batch ``number`` (from 0) of ``epoch`` (from 1), in its place."""
        if self._at != (epoch, number) or not self._latest.intact:
            with self._timed():
                self._read(epoch, number)
        return self._latest.value

    def _read(self, epoch: int, number: int) -> None:
        if self._at != (epoch, number - 1):
            self._pass = iter(epoch_of(self.loader, epoch, number))
        # A read that fails must not leave a position behind that the pass is not at.
        self._at = None
        batch = self._place(next(self._pass))
        self._latest, self._at = _Versioned(batch, batch), (epoch, number)
        if number == len(self.loader) - 1:
            next(self._pass, None)  # lets a pass with worker processes end them

    def reader(self) -> StreamReader:
        """What stands in for the loader in one training."""
        return StreamReader(self)


class StreamReader:
    """A loader whose batches come from a :class:`SharedStream`."""

    def __init__(self, stream: SharedStream) -> None:
        self._stream = stream
        self._next_epoch = 1

    def __len__(self) -> int:
        return len(self._stream.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.iterate()

    def set_epoch(self, epoch: int) -> None:
        """See ``Loader.set_epoch``."""
        self._next_epoch = epoch

    def iterate(self, start_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """See ``Loader.iterate``."""
        epoch = self._next_epoch
        self._next_epoch += 1
        return (self._stream.batch(epoch, number) for number in range(start_batch, len(self)))


class SharedTeacher:
    """A teacher that answers once for each batch, however many distillers ask.

    A batch is known by its tensor: another tensor is another question, whatever is in it.

    Args:
        distiller: whose teacher, and whose way to run it, all will use.
        timed: around the teacher's forward pass.
    """

    def __init__(self, distiller: Distiller, timed: _Timed) -> None:
        self.teacher = distiller.own_teacher
        self._run = distiller.run_teacher or self.teacher
        self._timed = timed
        self._image: Tensor | None = None
        self._answer = _Versioned(None, ())

    def __call__(self, image: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """(logits [B, C], features) of ``image`` [B, 3, H, W]; features of the caller's own."""
        if image is not self._image or not self._answer.intact:
            with self._timed(), torch.no_grad():
                logits, features = self._run(image)
            self._image = image
            self._answer = _Versioned((logits, features), [image, logits, *_tensors(features)])
        logits, features = self._answer.value
        if isinstance(features, FloatFeatures):
            return logits, features.copy()
        return logits, same_tensors(features)

    def forget(self) -> None:
        """Free the last batch and the answer to it."""
        self._image, self._answer = None, _Versioned(None, ())

    def suits(self, distiller: Distiller) -> bool:
        """Whether ``distiller`` would get the same answers from its own teacher."""
        return is_frozen(distiller) and _same_weights(distiller.own_teacher, self.teacher)

    def attach(self, distiller: Distiller) -> None:
        """Let ``distiller`` use this teacher, and free its own."""
        distiller.teacher = self.teacher
        distiller.run_teacher = self


class Shared:
    """What several trainings of one data set and teacher share.

    Args:
        timed: around the work that is done for all.
    """

    def __init__(self, timed: _Timed) -> None:
        self._timed = timed
        self._streams: dict[Hashable, SharedStream] = {}
        self._teacher: SharedTeacher | None = None

    def add_streams(self, trainer: BaseTrainer) -> None:
        """Let ``trainer``, whose loaders are those of the other ones, read what they read."""
        place = trainer.device_transform()

        def share(key: Hashable, loader: Batches) -> StreamReader:
            if key not in self._streams:
                self._streams[key] = SharedStream(loader, place, self._timed)
            return self._streams[key].reader()

        trainer.share_streams(share)

    def add_teacher(self, distiller: Distiller) -> bool:
        """Let ``distiller`` use the one teacher; False if it needs its own."""
        if distiller.teacher is None:
            return True
        if self._teacher is None and is_frozen(distiller):
            self._teacher = SharedTeacher(distiller, self._timed)
        if self._teacher is None or not self._teacher.suits(distiller):
            return False
        self._teacher.attach(distiller)
        return True

    def end_round(self) -> None:
        """Free what was kept for those who have had their turn."""
        if self._teacher is not None:
            self._teacher.forget()


def is_frozen(distiller: Distiller) -> bool:
    """Whether no training step changes a distiller's teacher."""
    before = distiller.training
    # OFD.TEACHER_TRAIN_MODE lets the teacher's BatchNorms drift.
    drifts = any(module.training for module in distiller.train().own_teacher.modules())
    distiller.train(before)
    return not drifts


def _tensors(features: Mapping[str, Any]) -> list[Tensor]:
    if isinstance(features, FloatFeatures):
        return features.tensors()
    return [leaf for leaf in tree_leaves(features) if isinstance(leaf, Tensor)]


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
