"""The second view of an image: Pillow's operations, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mdistiller.dataset._strong import OPERATIONS, Draw, augment

GREY = (125, 123, 114)


def affine(make: Callable[[float, Image.Image], tuple]) -> Callable:
    return lambda image, v: image.transform(image.size, Image.AFFINE, make(v, image))


PILLOW = {
    "autocontrast": lambda i, v: ImageOps.autocontrast(i),
    "brightness": lambda i, v: ImageEnhance.Brightness(i).enhance(v),
    "colour": lambda i, v: ImageEnhance.Color(i).enhance(v),
    "contrast": lambda i, v: ImageEnhance.Contrast(i).enhance(v),
    "equalize": lambda i, v: ImageOps.equalize(i),
    "identity": lambda i, v: i,
    "posterize": lambda i, v: ImageOps.posterize(i, int(v)),
    "rotate": lambda i, v: i.rotate(v),
    "sharpness": lambda i, v: ImageEnhance.Sharpness(i).enhance(v),
    "shear_x": affine(lambda v, i: (1, v, 0, 0, 1, 0)),
    "shear_y": affine(lambda v, i: (1, 0, 0, v, 1, 0)),
    "solarize": lambda i, v: ImageOps.solarize(i, v),
    "translate_x": affine(lambda v, i: (1, 0, v * i.size[0], 0, 1, 0)),
    "translate_y": affine(lambda v, i: (1, 0, 0, 0, 1, v * i.size[1])),
}


def pictures(count: int) -> torch.Tensor:
    """Smooth images, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    return (F.interpolate(small, size=32, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_operations_are_pillows():
    images = pictures(16)
    places = torch.rand(16, generator=torch.Generator().manual_seed(1))
    assert set(OPERATIONS) == set(PILLOW)
    for name, (function, low, high) in OPERATIONS.items():
        v = low + (high - low) * places
        found = function(images.clone(), v).permute(0, 2, 3, 1).numpy().astype(int)
        pairs = zip(images, v.tolist(), strict=True)
        expected = np.stack([np.asarray(PILLOW[name](pil(i), x)) for i, x in pairs]).astype(int)
        # A level of rounding; a rotated pixel may fall on the other side of an edge.
        assert (abs(found - expected) > 1).mean() < 1e-3, name


def test_the_grey_square_is_pillows():
    images = pictures(6)
    square = torch.rand(6, 3, generator=torch.Generator().manual_seed(2))
    identity = list(OPERATIONS).index("identity")
    draw = Draw(torch.full((6, 2), identity), torch.zeros(6, 2), square)
    found = augment(images, draw)
    for image, (side, x, y), result in zip(images, square.tolist(), found, strict=True):
        expected, side = pil(image).copy(), side * 16
        x0, y0 = (int(max(0, c * 32 - side / 2)) for c in (x, y))
        box = (x0, y0, min(32, x0 + side), min(32, y0 + side))
        ImageDraw.Draw(expected).rectangle(box, GREY)
        assert np.array_equal(np.asarray(expected), result.permute(1, 2, 0).numpy())


def test_a_part_of_a_batch_is_augmented_as_in_the_whole():
    images, generator = pictures(12), torch.Generator().manual_seed(3)
    draw = Draw.of(12, generator)
    whole = augment(images, draw)
    assert not torch.equal(whole, images)
    assert torch.equal(whole[4:9], augment(images[4:9], draw[4:9]))
