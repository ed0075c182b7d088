"""Wrong labels on purpose: what a method is worth where the training labels are not right."""

from __future__ import annotations

import torch
from torch import Tensor

from mdistiller.config import Config
from mdistiller.errors import ConfigError
from mdistiller.seeding import generator

from ._selection import Selection

NOISE_KINDS = ("symmetric", "pair")


def noisy_targets(
    cfg: Config, targets: Tensor, num_classes: int, chosen: Selection
) -> tuple[Tensor, float]:
    """The labels [N] to train with: ``targets`` with errors as ``DATASET.LABEL_NOISE`` says.

    Each label is wrong with probability LABEL_NOISE, independently of the others. A wrong one is
    any other class, all equally likely (``symmetric``), or the next class, after the last one the
    first (``pair``). Held-out images keep their labels. ``DATASET.SUBSET_SEED`` alone decides:
    an image has the same label whatever the subset and the run's seed are, and a label that is
    wrong stays wrong, and the same one, at a higher LABEL_NOISE.

    Args:
        targets: class labels [N] of the whole training set.
        chosen: of them, what is trained on and what is held out.

    Returns:
        The labels, and the fraction of those to train on that is wrong.

    Raises:
        ConfigError: there is one class only.
    """
    rate, kind = cfg.DATASET.LABEL_NOISE, cfg.DATASET.LABEL_NOISE_KIND
    if not rate:
        return targets, 0.0
    if num_classes < 2:
        raise ConfigError("DATASET.LABEL_NOISE needs two classes; set it to 0")
    rng = generator(cfg.DATASET.SUBSET_SEED, "label noise")
    wrong = torch.rand(len(targets), generator=rng, dtype=torch.float64) < rate
    step = torch.randint(1, num_classes, targets.shape, generator=rng)
    if chosen.holdout is not None:
        wrong[chosen.holdout] = False
    step = step if kind == "symmetric" else torch.ones_like(targets)
    used = wrong if chosen.train is None else wrong[chosen.train]
    noisy = torch.where(wrong, (targets + step) % num_classes, targets)
    return noisy, used.double().mean().item()
