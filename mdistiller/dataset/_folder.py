"""Image sets in folders, one per class, read and transformed by worker processes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from mdistiller.config import Config
from mdistiller.device import resolve_device
from mdistiller.errors import DataError, explained
from mdistiller.seeding import derive_seed

from ._contrastive import ContrastiveSettings, contrastive_settings
from ._files import ImageFiles
from ._loader import Loader
from ._noise import noisy_targets
from ._selection import select, validates_on_heldout
from ._strong import strong_view
from ._workers import prepare_worker, read_by_workers

Transform = Callable[[Image.Image], Tensor]


class FolderLoader(Loader):
    """A :class:`Loader` of images in folders; its batches are on the CPU.

    The transform of each image runs under a seed of its own, made of (seed, stream, epoch,
    index): the result is the same for any number of workers.

    Args:
        dataset: an image folder with the transform to apply.
        num_workers: processes that read images; 0 reads them in this one.
        pin_memory: make the batches fast to copy to a CUDA device.
        batch_size, train, seed, contrast, strong: as in :class:`Loader`; the second view is what
            :func:`~._strong.strong_view` makes of the data set's transform.

    Raises:
        DataError: while iterating, for an image that cannot be read.
        ValueError: while iterating, for a folder without a transform.
    """

    dataset: ImageFiles

    def __init__(
        self,
        dataset: ImageFiles,
        batch_size: int,
        *,
        num_workers: int,
        pin_memory: bool,
        train: bool,
        seed: int = 0,
        contrast: ContrastiveSettings | None = None,
        strong: bool = False,
    ) -> None:
        super().__init__(
            dataset, batch_size, train=train, seed=seed, contrast=contrast, strong=strong
        )
        self.num_workers = num_workers
        self._pin_memory = pin_memory
        for step in getattr(dataset.transform, "transforms", ()):
            if hasattr(step, "mean") and hasattr(step, "std"):  # torchvision's Normalize
                self.mean, self.std = tuple(step.mean), tuple(step.std)

    def _batches(self, epoch: int, order: Tensor, start_batch: int) -> Iterator[tuple[Tensor, ...]]:
        numbers = range(start_batch, len(self))
        images = _SeededPass(self.dataset, (self.seed, self.name, epoch), self.strong)
        batches = DataLoader(
            images,
            batch_sampler=[order[self._rows(number)].tolist() for number in numbers],
            num_workers=self.num_workers,
            pin_memory=self._pin_memory,
            collate_fn=images.collate,
            worker_init_fn=prepare_worker,
            # Without one of its own, a DataLoader would draw from the global generator.
            generator=self._generator(epoch, "workers"),
        )
        with read_by_workers(batches) as read:
            for batch in read:
                if isinstance(batch, _Unusable):
                    raise DataError(batch.message)
                yield tuple(batch)


@dataclass(frozen=True)
class _Unreadable:
    """Takes the place of an image: an exception from a worker would arrive as a traceback."""

    path: str
    reason: str


@dataclass(frozen=True)
class _Unusable:
    """Takes the place of a batch that cannot be made."""

    message: str


class _SeededPass(Dataset):
    """The items (image, target, index) of one pass over an image folder.

    With ``strong`` the image's second view follows. Each view has a seed of its own, so that the
    first one is what it is without a second.
    """

    def __init__(self, folder: ImageFiles, seed_names: tuple[Any, ...], strong: bool) -> None:
        if folder.transform is None:
            raise ValueError(f"{folder.root}: a loader needs images with a transform")
        self.folder, self.seed_names = folder, seed_names
        self.views = {"transform": folder.transform}
        if strong:
            self.views["strong"] = strong_view(folder.transform)

    def __getitem__(self, index: int) -> tuple[Any, ...] | _Unreadable:
        image = _read(self.folder, index)
        if isinstance(image, _Unreadable):
            return image
        target = self.folder.samples[index][1]
        views = []
        for name, transform in self.views.items():
            with _torch_seed(derive_seed(*self.seed_names, name, index)):
                views.append(transform(image))
        first, *second = views
        return first, target, index, *second

    def collate(self, items: list[tuple[Any, ...] | _Unreadable]) -> Any:
        """A batch of items, or why there is none."""
        broken = [item for item in items if isinstance(item, _Unreadable)]
        if broken:
            return _Unusable(
                f"{broken[0].path}: cannot be read as an image ({broken[0].reason}), like "
                f"{len(broken)} of {len(items)} images of its batch; replace or remove it, or set "
                "DATASET.SKIP_BROKEN True to leave out such images"
            )
        whole = [item for item in items if not isinstance(item, _Unreadable)]
        shapes = ["x".join(map(str, item[0].shape)) for item in whole]
        usual = Counter(shapes).most_common(1)[0][0]
        if other := [n for n, shape in enumerate(shapes) if shape != usual]:
            path = self.folder.samples[whole[other[0]][2]][0]
            return _Unusable(
                f"{path} becomes {shapes[other[0]]} (channels, height, width), others of its batch "
                f"{usual}; images of one batch must have one size: bring them to it"
            )
        return default_collate(whole)


class _Check(Dataset):
    """Whether each image of a folder can be read: None, or what is wrong with it."""

    def __init__(self, folder: ImageFiles) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, index: int) -> _Unreadable | None:
        image = _read(self.folder, index)
        return image if isinstance(image, _Unreadable) else None


def _read(folder: ImageFiles, index: int) -> Image.Image | _Unreadable:
    path, _ = folder.samples[index]
    try:
        return folder.loader(path)
    except Exception as error:  # a damaged file can make a decoder raise anything
        if not isinstance(error, DataError) and explained(error):
            raise  # the file is not to blame
        return _Unreadable(path, " ".join(str(error).split()) or type(error).__name__)


def leave_out_broken(folder: ImageFiles, num_workers: int) -> None:
    """Decode every image of ``folder`` once and drop those that cannot be read, with a warning.

    Raises:
        DataError: none can be read.
    """
    checks = DataLoader(
        _Check(folder),
        batch_size=64,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # of its own: not the global one
    )
    with read_by_workers(checks) as read:
        found = [result for batch in read for result in batch]
    broken = [result for result in found if result is not None]
    if not broken:
        return
    first = f"{broken[0].path} ({broken[0].reason})"
    counted = f"{len(broken)} of {len(found)} images of {folder.root} cannot be read"
    if len(broken) == len(found):
        raise DataError(f"{counted}, the first is {first}; unpack the data set again")
    more = ", ..." if len(broken) > 3 else ""
    names = ", ".join(Path(b.path).name for b in broken[:3])
    warnings.warn(f"{counted} and are left out: {names}{more}; the first is {first}", stacklevel=3)
    folder.keep([s for s, r in zip(folder.samples, found, strict=True) if r is None])


class _Pixels(Dataset):
    """The pixels of each image [3, H, W] uint8, or what is wrong with it."""

    def __init__(self, folder: ImageFiles, samples: list[tuple[str, int]]) -> None:
        self.folder = folder.of(samples)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Tensor | _Unreadable:
        image = _read(self.folder, index)
        if isinstance(image, _Unreadable):
            return image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _stack(items: list[Tensor | _Unreadable]) -> Tensor | _Unreadable:
    whole = [item for item in items if isinstance(item, Tensor)]
    broken = next((item for item in items if isinstance(item, _Unreadable)), None)
    return torch.stack(whole) if broken is None else broken


def read_pixels(
    files: ImageFiles, num_workers: int, samples: list[tuple[str, int]] | None = None
) -> Tensor:
    """The pixels [N, 3, H, W] uint8 of images that the files' loader brings to one size.

    Args:
        samples: those to read; None for all.

    Raises:
        DataError: an image cannot be read.
    """
    batches = DataLoader(
        _Pixels(files, files.samples if samples is None else samples),
        batch_size=64,
        num_workers=num_workers,
        collate_fn=_stack,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # lest it draws from the global one
    )
    parts = []
    with read_by_workers(batches) as read:
        for part in read:
            if isinstance(part, _Unreadable):
                raise DataError(
                    f"{part.path}: cannot be read as an image ({part.reason}); replace or remove "
                    "it, or set DATASET.SKIP_BROKEN True to leave out such images"
                )
            # A copy, for each batch of a worker holds an open file of shared memory.
            parts.append(part.clone())
    return torch.cat(parts)


@contextmanager
def _torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, which torchvision draws from, for a while."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def folder_loaders(
    cfg: Config, root: Path, train_transform: Transform, val_transform: Transform
) -> tuple[FolderLoader, FolderLoader, int, int]:
    """What ``get_dataset`` returns, for ``root/train`` and ``root/val``.

    Raises:
        DataError: a folder is missing or empty, the two have different classes, or more images
            are to be chosen or held out than there are.
    """
    train, val = ImageFiles(root / "train"), ImageFiles(root / "val")
    check_classes(root, train, val)
    if cfg.DATASET.SKIP_BROKEN:
        for folder in (train, val):
            leave_out_broken(folder, cfg.DATASET.NUM_WORKERS)
    return file_loaders(cfg, train, val, train_transform, val_transform)


def check_classes(root: Path, train: ImageFiles, val: ImageFiles) -> None:
    """Raises DataError where the two have different classes."""
    differing = sorted(set(train.classes) ^ set(val.classes))
    if differing:
        raise DataError(
            f"{root}: train and val must have the same classes; {differing[0]!r} is in one only"
        )


def file_loaders(
    cfg: Any,
    train: ImageFiles,
    val: ImageFiles,
    train_transform: Transform,
    val_transform: Transform,
) -> tuple[FolderLoader, FolderLoader, int, int]:
    """What ``get_dataset`` returns, for image files.

    Raises:
        ConfigError: DATASET.STRONG_VIEW is set and the transform leaves no place for it.
        DataError: more images are to be chosen or held out than there are.
    """
    if cfg.DATASET.STRONG_VIEW:
        strong_view(train_transform)  # refused before any batch is made
    targets = torch.tensor(train.targets)
    chosen = select(cfg, targets)
    targets, wrong = noisy_targets(cfg, targets, len(train.classes), chosen)
    heldout = None
    if chosen.holdout is not None:
        held = [train.samples[i] for i in chosen.holdout]
        heldout = train.of(held, train_transform)
        if validates_on_heldout(cfg):
            val = train.of(held)
    val = val.of(val.samples, val_transform)
    paths = (path for path, _ in train.samples)
    samples = list(zip(paths, targets.tolist(), strict=True))
    chosen_samples = samples if chosen.train is None else [samples[i] for i in chosen.train]
    train = train.of(chosen_samples, train_transform)
    shared = {
        "num_workers": cfg.DATASET.NUM_WORKERS,
        "pin_memory": resolve_device(cfg.SOLVER.DEVICE).type == "cuda",
        "seed": cfg.EXPERIMENT.SEED,
    }
    contrast = contrastive_settings(cfg, with_replacement=True)
    strong = cfg.DATASET.STRONG_VIEW
    train_loader = FolderLoader(
        train, cfg.SOLVER.BATCH_SIZE, train=True, contrast=contrast, strong=strong, **shared
    )
    train_loader.wrong_labels = wrong
    if heldout is not None:
        train_loader.heldout = FolderLoader(heldout, cfg.SOLVER.BATCH_SIZE, train=True, **shared)
    val_loader = FolderLoader(val, cfg.DATASET.TEST.BATCH_SIZE, train=False, **shared)
    return train_loader, val_loader, len(train), len(train.classes)
