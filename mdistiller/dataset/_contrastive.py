"""The samples that CRD contrasts an image with (Tian et al., arXiv:1910.10699, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdistiller.config import Config
from mdistiller.config.table import nodes_of
from mdistiller.errors import ConfigError, DataError
from mdistiller.seeding import derive_seed

# How many standard deviations more than K negatives are drawn, so that they are enough.
_MARGIN = 6.0


@dataclass(frozen=True)
class ContrastiveSettings:
    """How contrastive samples are drawn.

    Args:
        k: number of negatives per image.
        mode: "exact": the positive is the image itself; "relax": a random image of its class,
            which may be itself.
        with_replacement: negatives may repeat; they also do where ``k`` exceeds their number.
    """

    k: int
    mode: str = "exact"
    with_replacement: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"CRD.NCE.K must be at least 1, not {self.k}")
        if self.mode not in ("exact", "relax"):
            raise ConfigError(f"CRD.MODE must be exact or relax, not {self.mode!r}")


def contrastive_settings(cfg: Config, with_replacement: bool = False) -> ContrastiveSettings | None:
    """The settings of ``cfg.CRD``; None for a method that contrasts nothing.

    A method that does (``needs_contrast``) uses the node CRD.
    """
    if "CRD" not in (nodes_of("DISTILLER.TYPE", cfg.DISTILLER.TYPE) or ()):
        return None
    return ContrastiveSettings(cfg.CRD.NCE.K, cfg.CRD.MODE, with_replacement)


class ContrastiveSampler:
    """Draws, for each image of a batch, one positive and K negatives from the training set.

    Args:
        targets: class labels [N] of the training set.
        settings: what to draw.

    Raises:
        DataError: all images are of one class, so that there are no negatives.
    """

    def __init__(self, targets: Tensor, settings: ContrastiveSettings) -> None:
        self.settings = settings
        self._targets = np.asarray(targets)
        self._by_class = np.argsort(self._targets, kind="stable")
        self._sizes = np.bincount(self._targets)
        self._starts = np.cumsum(self._sizes) - self._sizes
        if self._sizes.max() == len(self._targets):
            raise DataError(
                "CRD contrasts images of different classes, but all images of this training set "
                f"have the label {self._targets[0]}"
            )

    def sample(self, index: Tensor, *seed_names: Any) -> Tensor:
        """Indices [B, K + 1] for the images ``index`` [B] (both int64, on the CPU).

        Column 0 is the positive, the others are negatives in no particular order.
        ``seed_names`` are the seed and the names of the random stream, as for
        :func:`~mdistiller.seeding.derive_seed`; the same ones give the same indices.
        """
        rng = np.random.Generator(np.random.SFC64(derive_seed(*seed_names)))
        rows = index.numpy()
        out = np.empty((len(rows), self.settings.k + 1), dtype=np.int64)
        out[:, 0] = rows
        labels = self._targets[rows]
        if self.settings.mode == "relax":
            out[:, 0] = self._by_class[self._starts[labels] + rng.integers(self._sizes[labels])]
        for row, label in zip(out, labels, strict=True):
            row[1:] = self._negatives(label, rng)
        return torch.from_numpy(out)

    def _negatives(self, label: int, rng: np.random.Generator) -> np.ndarray:
        k = self.settings.k
        others = len(self._targets) - self._sizes[label]
        if not self.settings.with_replacement and k <= others:
            return self._distinct_negatives(label, rng)
        rank = rng.integers(others, size=k)
        # Sorted by class, the own class is one gap in the row of all images: step over it.
        rank += self._sizes[label] * (rank >= self._starts[label])
        return self._by_class[rank]

    def _distinct_negatives(self, label: int, rng: np.random.Generator) -> np.ndarray:
        """A uniformly random set of K indices of other classes.

        Permuting all candidates for each image of a batch would take a third of a second.
        Instead each candidate is kept by an independent random byte, with a probability that
        leaves a few more than K, and the surplus is dropped at random: given how many are kept,
        every set of that size is equally likely, hence every set of K in the end.
        """
        total, k = len(self._targets), self.settings.k
        own = self._by_class[self._starts[label] :][: self._sizes[label]]
        others = total - len(own)
        spread = np.sqrt(k * (1 - k / others))
        threshold = min(256, int(np.ceil(256 * (k + _MARGIN * spread) / others)))
        drawn = rng.bit_generator.random_raw(-(-total // 8)).view(np.uint8)[:total]
        kept = _positions(drawn <= threshold - 1, own)
        if len(kept) < k:
            kept = _positions(np.ones(total, dtype=bool), own)
        return _drop_surplus(kept, k, rng)


def _positions(mask: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    mask[excluded] = False
    return np.flatnonzero(mask)


def _drop_surplus(kept: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """``k`` of the entries of ``kept``, chosen at random; the rest fills the gaps from behind."""
    surplus = len(kept) - k
    dropped = rng.choice(len(kept), surplus, replace=False, shuffle=False)
    keep_tail = np.ones(surplus, dtype=bool)
    keep_tail[dropped[dropped >= k] - k] = False
    result = kept[:k]
    result[dropped[dropped < k]] = kept[k:][keep_tail]
    return result
