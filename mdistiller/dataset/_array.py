"""Image sets that fit in memory, augmented a batch at a time on the device of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mdistiller.config import Config
from mdistiller.device import resolve_device
from mdistiller.errors import DataError

from ._contrastive import ContrastiveSettings, contrastive_settings
from ._loader import Loader
from ._noise import noisy_targets
from ._selection import select, validates_on_heldout
from ._strong import Draw, augment


class ImageArray(Dataset):
    """Images and labels as two tensors in memory.

    Args:
        images: [N, 3, H, W] uint8.
        targets: class labels [N].
        num_classes: the labels lie in 0..num_classes - 1.
        padding: width of a black border around each image, for crops.

    Attributes:
        whole: the set that these images were taken from (:meth:`take`), or this one.

    Raises:
        DataError: no images, labels out of range, or shapes and types other than these.
    """

    def __init__(self, images: Tensor, targets: Tensor, num_classes: int, padding: int = 0) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"images must be uint8 [N, 3, H, W], not {images.dtype} {list(images.shape)}"
            )
        if len(images) == 0 or targets.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images do not go with {targets.numel()} labels")
        _check_labels(targets, num_classes)
        self.targets = targets.long()
        self.num_classes = num_classes
        self.padding = padding
        self._images = images
        self._taken: tuple[ImageArray, Tensor] | None = None

    @property
    def whole(self) -> ImageArray:
        return self if self._taken is None else self._taken[0]

    def in_whole(self, index: Tensor) -> Tensor:
        """Where the images at ``index`` [M] of this set are in :attr:`whole`, int64 [M]."""
        return index if self._taken is None else self._taken[1][index]

    @cached_property
    def padded(self) -> Tensor:
        """The images with their border [N, 3, H + 2 * padding, W + 2 * padding], contiguous."""
        padded = F.pad(self._images, [self.padding] * 4).contiguous()
        height, width = padded.shape[2:]
        p = self.padding
        # A view from now on: the images are in memory once.
        self._images = padded[:, :, p : height - p, p : width - p]
        return padded

    @property
    def images(self) -> Tensor:
        """The images [N, 3, H, W] uint8 without the border (may be a view)."""
        return self._images

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hexadecimal) over the shape and the pixels of the images, labels left out."""
        digest = hashlib.sha256(str(list(self._images.shape)).encode())
        for images in self._images.split(1024):
            digest.update(images.contiguous().numpy())
        return digest.hexdigest()

    def take(self, index: Tensor, padding: int | None = None) -> ImageArray:
        """A set of the images at ``index`` [M] alone, of the same classes.

        Args:
            padding: None stands for this set's.
        """
        padding = self.padding if padding is None else padding
        found = ImageArray(self._images[index], self.targets[index], self.num_classes, padding)
        found._taken = self.whole, self.in_whole(index)
        return found

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image [3, H, W] uint8 and label at ``index``, not augmented."""
        return self.images[index], int(self.targets[index])


def _check_labels(targets: Tensor, num_classes: int) -> None:
    wrong = torch.nonzero((targets < 0) | (targets >= num_classes))
    if len(wrong):
        position = int(wrong[0])
        raise DataError(
            f"label {int(targets[position])} of image {position} is out of range: "
            f"this data set has the labels 0..{num_classes - 1}"
        )


@dataclass(frozen=True)
class Recipe:
    """How an image is prepared: its channels' mean and deviation (of values in 0..1), flips."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool


class ArrayLoader(Loader):
    """A :class:`Loader` of an :class:`ImageArray` whose batches are made on ``device``.

    Equals torchvision's RandomCrop(padding), RandomHorizontalFlip, ToTensor, Normalize, image
    by image, but for the source of the random numbers. They are drawn on the CPU, so that
    every device sees the same images. No worker processes are used.

    Args:
        dataset: its ``padding`` is the largest shift of the random crops.
        recipe: normalisation, and whether to flip.
        device: where the images and the batches live.
        batch_size, train, seed, contrast, strong: as in :class:`Loader`.
    """

    dataset: ImageArray

    def __init__(
        self,
        dataset: ImageArray,
        batch_size: int,
        *,
        recipe: Recipe,
        device: torch.device,
        train: bool,
        seed: int = 0,
        contrast: ContrastiveSettings | None = None,
        strong: bool = False,
    ) -> None:
        super().__init__(
            dataset, batch_size, train=train, seed=seed, contrast=contrast, strong=strong
        )
        self.device = device
        self.mean, self.std = tuple(recipe.mean), tuple(recipe.std)
        self.recipe = recipe
        self._shape = dataset.images.shape[1:]
        self._pixels = dataset.padded.to(device).flatten()
        self._targets = dataset.targets.to(device)
        self._windows = _windows(dataset).to(device)
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (recipe.mean, recipe.std))
        # (x / 255 - mean) / std as one multiplication and one addition.
        self._scale = (1 / (255 * std)).float().view(3, 1, 1).to(device)
        self._shift = (-mean / std).float().view(3, 1, 1).to(device)

    def _batches(self, epoch: int, order: Tensor, start_batch: int) -> Iterator[tuple[Tensor, ...]]:
        crops = self._draw(epoch, order)
        if self.strong:
            strong_crops = self._draw(epoch, order, "strong ")
            strong = Draw.of(len(order), self._generator(epoch, "strong"))
        order = order.to(self.device)
        for batch in [self._rows(number) for number in range(start_batch, len(self))]:
            index = order[batch]
            target = self._targets.index_select(0, index)
            if self.strong:
                second = self._view(batch, strong_crops, strong[batch])
                yield self._view(batch, crops), target, index, second
            else:
                yield self._view(batch, crops), target, index

    def _view(
        self, batch: slice, crops: tuple[Tensor, Tensor], strong: Draw | None = None
    ) -> Tensor:
        """The images [B, 3, H, W] at ``batch`` in the order of an epoch: cut out, normalised.

        Args:
            crops: of :meth:`_draw`.
            strong: how they are augmented in between.
        """
        corner, flip = crops
        window = self._windows.index_select(0, flip[batch]).add_(corner[batch, None])
        image = self._pixels.index_select(0, window.flatten()).view(-1, *self._shape)
        if strong is not None:
            image = augment(image, strong)
        return image.float().mul_(self._scale).add_(self._shift)

    def _draw(self, epoch: int, order: Tensor, view: str = "") -> tuple[Tensor, Tensor]:
        """Of each image of an epoch: the first pixel of its crop, and whether to flip (0 or 1)."""
        return self._placed(order, *self._shifts(epoch, order, view))

    def _shifts(self, epoch: int, order: Tensor, view: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """Of each image of an epoch: how far its crop lies down and right, and whether to flip.

        Args:
            view: names the random streams of another view than the first.
        """
        padding = self.dataset.padding
        down = right = torch.full_like(order, padding)
        flip = torch.zeros_like(order)
        if self.train:
            rng = self._generator(epoch, f"{view}crop")
            down, right = torch.randint(2 * padding + 1, (2, len(order)), generator=rng)
            if self.recipe.flip:
                rng = self._generator(epoch, f"{view}flip")
                flip = torch.randint(2, (len(order),), generator=rng)
        return down, right, flip

    def _placed(
        self, index: Tensor, down: Tensor, right: Tensor, flip: Tensor
    ) -> tuple[Tensor, Tensor]:
        channels, height, width = self.dataset.padded.shape[1:]
        corner = index * (channels * height * width) + down * width + right
        return corner.to(self.device), flip.to(self.device)

    @property
    def variants(self) -> int:
        """How many crops and flips of an image there are."""
        return (2 * self.dataset.padding + 1) ** 2 * (2 if self.recipe.flip else 1)

    def _shown(self, epoch: int, order: Tensor) -> tuple[Tensor, Tensor]:
        down, right, flip = self._shifts(epoch, order)
        shift = down * (2 * self.dataset.padding + 1) + right
        variant = shift * 2 + flip if self.recipe.flip else shift
        return self.dataset.in_whole(order), variant

    def of_whole(self) -> ArrayLoader:
        """A loader of the set that this one's images were taken from, prepared in the same way."""
        whole = self.dataset.whole
        if whole is self.dataset:
            return self
        return ArrayLoader(
            whole,
            self.batch_size,
            recipe=self.recipe,
            device=self.device,
            train=self.train,
            seed=self.seed,
        )

    def views(self, index: Tensor, variant: Tensor) -> Tensor:
        """The images ``index`` [B] in the crops and flips ``variant`` [B]: [B, 3, H, W] float32.

        Args:
            index, variant: int64, on the CPU; a variant lies in 0..:attr:`variants` - 1.
        """
        flips, side = 2 if self.recipe.flip else 1, 2 * self.dataset.padding + 1
        shift, flip = variant // flips, variant % flips
        placed = self._placed(index, shift // side, shift % side, flip)
        return self._view(slice(None), placed)


def _windows(dataset: ImageArray) -> Tensor:
    """Where the pixels of a crop lie relative to its first one: plain and mirrored [2, 3*H*W]."""
    padded_height, padded_width = dataset.padded.shape[2:]
    channels, height, width = dataset.images.shape[1:]
    channel = torch.arange(channels).view(-1, 1, 1) * (padded_height * padded_width)
    plain = channel + torch.arange(height).view(-1, 1) * padded_width + torch.arange(width)
    return torch.stack([plain.flatten(), plain.flip(-1).flatten()])


def array_loaders(
    cfg: Config, train: ImageArray, val: ImageArray, recipe: Recipe
) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """What ``get_dataset`` returns, for two sets in memory.

    Raises:
        DataError: more images are to be chosen or held out than there are.
    """
    chosen = select(cfg, train.targets)
    heldout = None
    if chosen.holdout is not None:
        heldout = train.take(chosen.holdout)
        if validates_on_heldout(cfg):
            val = train.take(chosen.holdout, padding=0)
    targets, wrong = noisy_targets(cfg, train.targets, train.num_classes, chosen)
    train = ImageArray(train.images, targets, train.num_classes, train.padding)
    if chosen.train is not None:
        train = train.take(chosen.train)
    batch_size, seed = cfg.SOLVER.BATCH_SIZE, cfg.EXPERIMENT.SEED
    shared = {"recipe": recipe, "device": resolve_device(cfg.SOLVER.DEVICE), "seed": seed}
    train_loader = ArrayLoader(
        train,
        batch_size,
        train=True,
        contrast=contrastive_settings(cfg),
        strong=cfg.DATASET.STRONG_VIEW,
        **shared,
    )
    train_loader.wrong_labels = wrong
    if heldout is not None:
        train_loader.heldout = ArrayLoader(heldout, batch_size, train=True, **shared)
    val_loader = ArrayLoader(val, cfg.DATASET.TEST.BATCH_SIZE, train=False, **shared)
    return train_loader, val_loader, len(train), train.num_classes
