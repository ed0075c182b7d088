"""Strong augmentation of a batch of images: two random operations and a grey square on each.

The variant of RandAugment (arXiv:1909.13719) that MLKD's authors train with: an operation's
magnitude is uniform over its range, and a square of up to half the image's side is always laid
over it. Operations are Pillow's, up to rounding. All random numbers are drawn on the CPU for a
whole epoch, so that they depend neither on the device nor on how its batches are divided; for
images in folders, whose transforms run under a seed of each image's own, they come from that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mdistiller.device import moved
from mdistiller.errors import ConfigError

_PER_IMAGE = 2
_GREY = (125, 123, 114)
# Of red, green and blue in a grey value (ITU-R 601-2).
_LUMA = (0.299, 0.587, 0.114)


def _torchvisions(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """torchvision's operation ``name``, which has no magnitude."""

    def operation(x: Tensor, v: Tensor) -> Tensor:
        # Only here: its import takes as long as torch's own, in every process.
        from torchvision.transforms.v2 import functional

        return getattr(functional, name)(x)

    return operation


def _grey(x: Tensor) -> Tensor:
    weights = moved(torch.tensor(_LUMA), x.device).view(3, 1, 1)
    return (x.float() * weights).sum(dim=1, keepdim=True).round()


def _blend(other: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """From ``other`` (v = 0) to ``x`` (v = 1)."""
    mixed = other + v.view(-1, 1, 1, 1) * (x.float() - other)
    return mixed.clamp(0, 255).to(torch.uint8)


def _brightness(x: Tensor, v: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x, dtype=torch.float32), x, v)


def _colour(x: Tensor, v: Tensor) -> Tensor:
    return _blend(_grey(x), x, v)


def _contrast(x: Tensor, v: Tensor) -> Tensor:
    return _blend(_grey(x).mean(dim=(1, 2, 3), keepdim=True).add(0.5).floor(), x, v)


def _sharpness(x: Tensor, v: Tensor) -> Tensor:
    kernel = moved(torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]), x.device)
    smooth = x.float()
    inside = F.conv2d(smooth, (kernel / 13).expand(3, 1, 3, 3), groups=3).round()
    smooth = smooth.clone()
    smooth[:, :, 1:-1, 1:-1] = inside
    return _blend(smooth, x, v)


def _posterize(x: Tensor, v: Tensor) -> Tensor:
    """Keep the ``v`` highest bits, rounded down."""
    step = torch.exp2(8 - v.floor()).view(-1, 1, 1, 1)
    return (torch.floor(x.float() / step) * step).to(torch.uint8)


def _solarize(x: Tensor, v: Tensor) -> Tensor:
    return torch.where(x.float() >= v.view(-1, 1, 1, 1), 255 - x, x)


def _affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Each image with its pixels taken from where [B, 2, 3] says, in pixels from the centre.

    What comes from outside is black; the nearest pixel counts.
    """
    height, width = x.shape[2:]
    size = moved(torch.tensor([width, height], dtype=torch.float32), x.device)
    # From pixels to the unit square's coordinates: rows and columns scale, the shift doubles.
    scaled = matrix.clone()
    scaled[:, :, :2] *= (size[None, :] / size[:, None])[None]
    scaled[:, :, 2] *= 2 / size
    grid = F.affine_grid(scaled, list(x.shape), align_corners=False)
    warped = F.grid_sample(
        x.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return warped.to(torch.uint8)


def _matrix(v: Tensor, **entries: Tensor) -> Tensor:
    """[B, 2, 3], the identity but for ``entries`` (a, b, c in the first row, d, e, f)."""
    zero, one = torch.zeros_like(v), torch.ones_like(v)
    values = {"a": one, "b": zero, "c": zero, "d": zero, "e": one, "f": zero, **entries}
    return torch.stack(list(values.values()), dim=1).view(-1, 2, 3)


def _rotate(x: Tensor, v: Tensor) -> Tensor:
    angle = torch.deg2rad(v)
    cos, sin = angle.cos(), angle.sin()
    return _affine(x, _matrix(v, a=cos, b=-sin, d=sin, e=cos))


def _shear_x(x: Tensor, v: Tensor) -> Tensor:
    # Pillow's shear leaves the upper left corner where it is.
    return _affine(x, _matrix(v, b=v, c=v * x.shape[2] / 2))


def _shear_y(x: Tensor, v: Tensor) -> Tensor:
    return _affine(x, _matrix(v, d=v, f=v * x.shape[3] / 2))


def _translate_x(x: Tensor, v: Tensor) -> Tensor:
    return _affine(x, _matrix(v, c=v * x.shape[3]))


def _translate_y(x: Tensor, v: Tensor) -> Tensor:
    return _affine(x, _matrix(v, f=v * x.shape[2]))


# Each operation with the range of its magnitude.
OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "autocontrast": (_torchvisions("autocontrast"), 0, 1),
    "brightness": (_brightness, 0.05, 0.95),
    "colour": (_colour, 0.05, 0.95),
    "contrast": (_contrast, 0.05, 0.95),
    "equalize": (_torchvisions("equalize"), 0, 1),
    "identity": (lambda x, v: x, 0, 1),
    "posterize": (_posterize, 4, 8),
    "rotate": (_rotate, -30, 30),
    "sharpness": (_sharpness, 0.05, 0.95),
    "shear_x": (_shear_x, -0.3, 0.3),
    "shear_y": (_shear_y, -0.3, 0.3),
    "solarize": (_solarize, 0, 256),
    "translate_x": (_translate_x, -0.3, 0.3),
    "translate_y": (_translate_y, -0.3, 0.3),
}


@dataclass(frozen=True)
class Draw:
    """What happens to each of N images.

    Attributes:
        operation: [N, 2], numbers in :data:`OPERATIONS`.
        magnitude: [N, 2], in [0, 1), a place in the operation's range.
        square: [N, 3], in [0, 1): the square's side in halves of the image's, its centre.
    """

    operation: Tensor
    magnitude: Tensor
    square: Tensor

    @classmethod
    def of(cls, count: int, generator: torch.Generator) -> Draw:
        """Random ones for ``count`` images."""
        operation = torch.randint(len(OPERATIONS), (count, _PER_IMAGE), generator=generator)
        magnitude = torch.rand(count, _PER_IMAGE, generator=generator)
        return cls(operation, magnitude, torch.rand(count, 3, generator=generator))

    def __getitem__(self, rows: slice) -> Draw:
        return Draw(self.operation[rows], self.magnitude[rows], self.square[rows])


def augment(images: Tensor, draw: Draw) -> Tensor:
    """Images [B, 3, H, W] uint8 after what ``draw`` (of B, on the CPU) says."""
    images = images.clone()
    for turn in range(_PER_IMAGE):
        for number, (function, low, high) in enumerate(OPERATIONS.values()):
            rows = (draw.operation[:, turn] == number).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            v = moved(low + (high - low) * draw.magnitude[rows, turn], images.device)
            rows = moved(rows, images.device)
            images[rows] = function(images[rows], v)
    return _cover(images, moved(draw.square, images.device))


def _cover(images: Tensor, square: Tensor) -> Tensor:
    """Lay a grey square over each image; its part outside is cut off."""
    height, width = images.shape[2:]
    side = square[:, 0] * 0.5 * width

    def inside(centre: Tensor, size: int) -> Tensor:
        first = (centre * size - side / 2).clamp(min=0).floor()
        # Pillow draws a rectangle with both of its edges.
        last = torch.minimum(first + side, torch.full_like(side, size)).floor()
        position = torch.arange(size, device=images.device)
        return (position >= first[:, None]) & (position <= last[:, None])

    covered = inside(square[:, 2], height)[:, :, None] & inside(square[:, 1], width)[:, None, :]
    covered &= (side > 0)[:, None, None]
    grey = moved(torch.tensor(_GREY, dtype=torch.uint8), images.device).view(3, 1, 1)
    return torch.where(covered[:, None], grey, images)


def augment_image(image: Image.Image) -> Image.Image:
    """One RGB image after a random :class:`Draw` from torch's global generator."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()
    augmented = augment(pixels, Draw.of(1, torch.default_generator))
    return Image.fromarray(augmented[0].permute(1, 2, 0).numpy())


def _steps(transform: Any) -> list[Any]:
    """Of a Compose and of those within it."""
    if not hasattr(transform, "transforms"):
        return [transform]
    return [step for part in transform.transforms for step in _steps(part)]


# The steps of a transform that make a tensor of an image.
_TO_TENSOR = ("ToTensor", "PILToTensor", "ToImage")


def strong_view(transform: Any) -> Any:
    """``transform``, a Compose of torchvision, with :func:`augment_image` before ToTensor.

    Raises:
        ConfigError: it is none, or it makes no tensor.
    """
    steps = _steps(transform) if hasattr(transform, "transforms") else []
    names = [type(step).__name__ for step in steps]
    place = next((n for n, name in enumerate(names) if name in _TO_TENSOR), None)
    if place is None:
        raise ConfigError(
            "DATASET.STRONG_VIEW needs a training transform that is a Compose of torchvision with "
            "ToTensor; set it to False"
        )
    strong = copy.copy(transform)
    strong.transforms = [*steps[:place], augment_image, *steps[place:]]
    return strong
