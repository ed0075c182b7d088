"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels.

A data set that needs no download: for a first try, examples and tests.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mdistiller.config import Config
from mdistiller.errors import DataError

from ._array import ArrayLoader, ImageArray, Recipe, array_loaders
from ._registry import dataset_dict

# Of the training images after enlarging. A mirrored digit is another sign, so no flips.
RECIPE = Recipe(mean=(0.3052,) * 3, std=(0.3236,) * 3, flip=False)

VAL_SIZE = 450
# Rows of scikit-learn's file, those to validate on last: what its train_test_split gave, with as
# many of every class and random_state 0. The split is part of the data set, hence independent of
# EXPERIMENT.SEED and of scikit-learn's version.
_ORDER = Path(__file__).with_name("digits_order.txt")


@dataset_dict.register("digits")
def get_digits(cfg: Config) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """Loaders of 1,347 training and 450 validation images, enlarged to 32x32, 3 equal channels.

    Raises:
        DataError: scikit-learn is not installed.
    """
    train, val = (
        ImageArray(_enlarge(images), torch.from_numpy(labels), num_classes=10, padding=padding)
        for (images, labels), padding in zip(read_digits(), (4, 0), strict=True)
    )
    return array_loaders(cfg, train, val, RECIPE)


def read_digits() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Images [N, 8, 8] with values 0..16 and labels [N], to train on and to validate on."""
    images, labels = read_in_order()
    order = np.array(_ORDER.read_text(encoding="utf-8").split(), dtype=int)
    return tuple((images[part], labels[part]) for part in np.split(order, [-VAL_SIZE]))


def read_in_order() -> tuple[np.ndarray, np.ndarray]:
    """All images [1797, 8, 8] and labels as scikit-learn has them, where the classes take turns.

    Where its file lies as in its releases so far, it is not imported: that takes nearly as long
    as importing torch.
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits comes with scikit-learn; run: pip install scikit-learn")
    path = Path(found.origin).with_name("datasets") / "data" / "digits.csv.gz"
    if path.exists():
        rows = _rows(path)
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    raw = load_digits()
    return raw.images, raw.target.astype(np.int64)


# 30 ms, and a table trains on them many times in one process.
@cache
def _rows(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",")


def _enlarge(images: np.ndarray) -> torch.Tensor:
    """[N, 8, 8] with values 0..16 as [N, 3, 32, 32] uint8."""
    small = torch.from_numpy(images).float()[:, None]
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return (large * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)
