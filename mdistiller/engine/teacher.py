"""The teacher of a training: made, with a fault where a study wants one, and looked at."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.config import Config
from mdistiller.console import log
from mdistiller.dataset import build_model, load_teacher
from mdistiller.device import resolve_device
from mdistiller.errors import ConfigError
from mdistiller.models import PUBLISHED_TOP1
from mdistiller.models.foreign import adapt_input, logits_of
from mdistiller.seeding import derive_seed, generator, seed_everything

from .meters import validate

# A teacher this many points below its published accuracy is probably not the published one.
_TOLERANCE = 0.5

# Guessing agrees with so many labels less often than this: then the teacher knows something.
_RARELY = 0.01

# Fewer labels do not tell a teacher from chance.
_ENOUGH = 16


# ---- making it -------------------------------------------------------------------------------


def build_teacher(cfg: Config, num_classes: int, loader: Any = None) -> nn.Module:
    """The network ``DISTILLER.TEACHER`` with its weights, and with ``DISTILLER.TEACHER_FAULT``.

    ``permute`` gives every logit to another class, at random, and leaves the features alone;
    ``random`` gives the network the initial weights of a seed and reads no file. Both are made
    of EXPERIMENT.SEED.

    Args:
        loader: of the images that it will see, to which its input is adapted.

    Raises:
        CheckpointError: see ``load_teacher``.
        ConfigError: the logits cannot be permuted.
    """
    fault, seed = cfg.DISTILLER.TEACHER_FAULT, cfg.EXPERIMENT.SEED
    if fault == "random":
        seed_everything(derive_seed(seed, "random teacher"))
    teacher = sound_teacher(cfg, num_classes, loader, random=fault == "random")
    if fault == "permute":
        permute_classes(teacher, derangement(num_classes, seed))
    return teacher


def sound_teacher(
    cfg: Config, num_classes: int, loader: Any = None, *, random: bool = False
) -> nn.Module:
    """:func:`build_teacher` without a fault, or (``random``) with initial weights."""
    names = cfg.DISTILLER
    options = {
        "input_size": names.TEACHER_SIZE,
        "features": names.FEATURES.TEACHER,
        "role": "TEACHER",
    }
    where = (cfg.DATASET.TYPE, names.TEACHER, num_classes)
    size = cfg.DATASET.IMAGE_SIZE
    if random:
        teacher = build_model(*where, size, **options)
    else:
        teacher = load_teacher(*where, names.TEACHER_CKPT, size, **options)
    return adapt_input(teacher, loader, names.TEACHER_MEAN, names.TEACHER_STD, names.TEACHER_SIZE)


def derangement(count: int, seed: int) -> Tensor:
    """A random order [count] in which nothing is at its own place.

    Raises:
        ConfigError: ``count`` is less than 2.
    """
    if count < 2:
        raise ConfigError("DISTILLER.TEACHER_FAULT permute needs two classes; set it to none")
    rng = generator(seed, "permuted teacher")
    # All derangements are equally likely; a permutation is one in 1 of e cases.
    while True:
        order = torch.randperm(count, generator=rng)
        if not (order == torch.arange(count)).any():
            return order


@torch.no_grad()
def permute_classes(network: nn.Module, order: Tensor) -> None:
    """Let logit i of ``network`` be what logit ``order[i]`` was; the features stay.

    Raises:
        ConfigError: the network does not end in a linear layer of as many outputs.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1].out_features != len(order):
        raise ConfigError(
            f"DISTILLER.TEACHER_FAULT permute needs a teacher that ends in a linear layer with an "
            f"output for each class, which {type(network).__name__} does not; set it to none"
        )
    for values in layers[-1].parameters():
        values.copy_(values[order.to(values.device)])


def before_permuting(cfg: Config, teacher: nn.Module) -> tuple[nn.Module, Tensor | None]:
    """What ``teacher`` was before DISTILLER.TEACHER_FAULT permute, and the order [C] that this
    gave its logits; ``teacher`` itself and None where it has another fault or none."""
    if cfg.DISTILLER.TEACHER_FAULT != "permute":
        return teacher, None
    found = deepcopy(teacher)
    *_, last = (m for m in found.modules() if isinstance(m, nn.Linear))
    order = derangement(last.out_features, cfg.EXPERIMENT.SEED)
    permute_classes(found, order.argsort())
    return found, order


# ---- looking at it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How a teacher's predictions go with a batch of labels.

    Attributes:
        same: labels that it predicts.
        images: in the batch.
        by_chance: labels that it would be expected to predict if it did not look at the images
            and predicted each class as often as it does.
    """

    same: int
    images: int
    by_chance: float

    @property
    def percent(self) -> float:
        return 100 * self.same / self.images

    @property
    def at_chance(self) -> bool:
        """Whether guessing would do as well at least once in a hundred times."""
        share = min(self.by_chance / self.images, 1.0)
        guesses = torch.distributions.Binomial(self.images, torch.tensor(share).double())
        less = guesses.log_prob(torch.arange(self.same).double()).exp().sum()
        return self.images >= _ENOUGH and 1 - less.item() > _RARELY


def agreement(guess: Tensor, target: Tensor) -> Agreement:
    """Of the predicted classes ``guess`` [B] with the labels ``target`` [B]."""
    count = int(max(guess.max(), target.max())) + 1
    guessed, labelled = (torch.bincount(x, minlength=count).double() for x in (guess, target))
    by_chance = (guessed * labelled).sum().item() / len(target)
    return Agreement(int((guess == target).sum()), len(target), by_chance)


class LogitsOnly(nn.Module):
    """A bare network behind the interface that :func:`validate` calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Whoever restores this module's mode then restores the network's.
        self.training = network.training

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.network(image))


def evaluate(network: nn.Module, val_loader: Any, device: torch.device):
    """Top-1, top-5 (percent) and cross-entropy of a network that returns (logits, features)."""
    return validate(val_loader, LogitsOnly(network.to(device)))


@dataclass(frozen=True)
class Look:
    """What was seen of a teacher.

    Attributes:
        top1: on the validation images, in percent; None if they were not looked at.
        batch: on a training batch; None if there was none to look at.
    """

    top1: float | None = None
    batch: Agreement | None = None

    @property
    def results(self) -> dict[str, float]:
        """Entries of ``result.json``, in percent."""
        found = {"teacher_top1": self.top1}
        found["teacher_agreement"] = None if self.batch is None else self.batch.percent
        return {key: value for key, value in found.items() if value is not None}


def look_at_teacher(
    cfg: Config, teacher: nn.Module, train_loader: Iterable, val_loader: Iterable
) -> Look:
    """Ask the teacher for all validation images, but for ImageNet's, and for a training batch.

    The batch is of a random stream of its own; without streams there is none.
    """
    device, top1, batch = resolve_device(cfg.SOLVER.DEVICE), None, None
    if cfg.DATASET.TYPE != "imagenet":
        top1, _, _ = evaluate(teacher, val_loader, device)
    if hasattr(train_loader, "stream"):
        batch = _on_a_batch(teacher.to(device), train_loader.stream("teacher"), device)
    return Look(top1, batch)


def log_teacher(cfg: Config, look: Look) -> None:
    """Print how good the teacher is, and warn where it is probably the wrong one."""
    name, words, warnings = cfg.DISTILLER.TEACHER, [], []
    if look.top1 is not None:
        published = PUBLISHED_TOP1.get(name) if cfg.DATASET.TYPE == "cifar100" else None
        beside = f" (published {published:.2f})" if published else ""
        words.append(f"top-1 {look.top1:.2f}{beside}")
        if published and look.top1 < published - _TOLERANCE:
            warnings.append(
                f"is {published - look.top1:.2f} points below its published accuracy: is this "
                "the right checkpoint?"
            )
    if look.batch is not None:
        words.append(
            f"predicts {look.batch.same} of {look.batch.images} labels of a training batch"
        )
        if look.batch.at_chance:
            warnings.append(_at_chance(cfg, look.batch))
    if words:
        log(f"teacher {name}: {', '.join(words)}", "EVAL")
    for warning in warnings:
        log(f"warning: teacher {name} {warning}", "WARN")


def _at_chance(cfg: Config, found: Agreement) -> str:
    causes = "wrong class order? other normalisation? trained on another data set?"
    if cfg.DISTILLER.TEACHER_FAULT != "none":
        causes = f"DISTILLER.TEACHER_FAULT is {cfg.DISTILLER.TEACHER_FAULT}"
    return (
        f"is at chance level: it predicts {found.same} of {found.images} training labels, and "
        f"guessing would {found.by_chance:.1f} ({causes})"
    )


@torch.no_grad()
def _on_a_batch(teacher: nn.Module, batches: Iterable, device: torch.device) -> Agreement:
    image, target, *_ = next(iter(batches))
    dtype = next(teacher.parameters()).dtype
    was = teacher.training
    guess = teacher.eval()(image.to(device, dtype))[0].argmax(1).cpu()
    teacher.train(was)
    return agreement(guess, target.cpu())
