"""Fewer training images than there are, and some held out: the same ones in every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdistiller.config import Config
from mdistiller.errors import DataError
from mdistiller.seeding import generator


@dataclass(frozen=True)
class Selection:
    """Positions in the training set, ascending int64 vectors.

    Attributes:
        train: what to train on; None stands for everything.
        holdout: what is held out, for validation or as a reference; None for nothing.
    """

    train: Tensor | None
    holdout: Tensor | None


def select(cfg: Config, targets: Tensor) -> Selection:
    """What ``DATASET.SUBSET``, ``DATASET.HOLDOUT`` and ``DATASET.SUBSET_SEED`` choose.

    A random order within each class is fixed by SUBSET_SEED alone. The subset takes every class
    from its beginning, the held-out images from its end, both as evenly as the classes' sizes
    allow; one image more comes from the first classes for the subset, from the last ones for
    those held out. So the subset does not depend on HOLDOUT, nor the held-out images on SUBSET.
    With TRAIN_ON_HOLDOUT both are trained on.

    Args:
        targets: class labels [N] of the whole training set.

    Raises:
        DataError: there are not so many images.
    """
    subset, holdout = cfg.DATASET.SUBSET, cfg.DATASET.HOLDOUT
    total = len(targets)
    for name, wanted, most in (("SUBSET", subset, total), ("HOLDOUT", holdout, total - 1)):
        if wanted > most:
            raise DataError(
                f"DATASET.{name} {wanted} is too large: there are {total} training images; "
                f"at most {most} can be chosen"
            )
    if not subset and not holdout:
        return Selection(None, None)
    ranks, sizes = _ranks(targets, cfg.DATASET.SUBSET_SEED)
    # Images of one rank, of different classes each, are told apart by their class.
    held = _lowest((sizes[targets] - ranks) * len(sizes) - 1 - targets, holdout)
    chosen = _lowest(ranks * len(sizes) + targets, subset) if subset else ~held
    both = int((chosen & held).sum())
    if both:
        raise DataError(
            f"DATASET.SUBSET {subset} and DATASET.HOLDOUT {holdout} would share {both} images of "
            f"the {total} for training; make one of them smaller"
        )
    if cfg.DATASET.TRAIN_ON_HOLDOUT:
        chosen |= held
    return Selection(chosen.nonzero().flatten(), held.nonzero().flatten() if holdout else None)


def validates_on_heldout(cfg: Config) -> bool:
    """Whether accuracies are of the held-out images, not of the test images."""
    return bool(cfg.DATASET.HOLDOUT) and cfg.DATASET.VALIDATE == "auto"


def _ranks(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The rank [N] of each image in a random order of its class, and the classes' sizes."""
    shuffled = torch.randperm(len(targets), generator=generator(seed, "subset"))
    by_class = shuffled[torch.argsort(targets[shuffled], stable=True)]
    sizes = torch.bincount(targets)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(targets)
    ranks[by_class] = torch.arange(len(targets)) - starts[targets[by_class]]
    return ranks, sizes


def _lowest(keys: Tensor, number: int) -> Tensor:
    """Marks [N] the ``number`` lowest of ``keys`` [N], which are all different."""
    marked = torch.zeros(len(keys), dtype=torch.bool)
    marked[torch.argsort(keys)[:number]] = True
    return marked
