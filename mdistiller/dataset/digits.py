"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels.

A data set that needs no download: for a first try, examples and tests.
"""

from __future__ import annotations

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
# The split is part of the data set, hence independent of EXPERIMENT.SEED.
_SPLIT_SEED = 0


@dataset_dict.register("digits")
def get_digits(cfg: Config) -> tuple[ArrayLoader, ArrayLoader, int, int]:
    """Loaders of 1,347 training and 450 validation images, enlarged to 32x32, 3 equal channels.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError("digits comes with scikit-learn; run: pip install scikit-learn") from None
    raw = load_digits()
    images, targets = _enlarge(raw.images), torch.tensor(raw.target)
    train, val = train_test_split(
        np.arange(len(targets)),
        test_size=VAL_SIZE,
        stratify=raw.target,
        random_state=_SPLIT_SEED,
    )
    return array_loaders(
        cfg,
        ImageArray(images[train], targets[train], num_classes=10, padding=4),
        ImageArray(images[val], targets[val], num_classes=10),
        RECIPE,
    )


def _enlarge(images: np.ndarray) -> torch.Tensor:
    """[N, 8, 8] with values 0..16 as [N, 3, 32, 32] uint8."""
    small = torch.from_numpy(images).float()[:, None]
    large = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return (large * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)
