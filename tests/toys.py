"""Small networks, data and distillers for tests of training."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.dataset import digits
from mdistiller.distillers import CrossBatchDistiller, Distiller
from mdistiller.engine.cfg import CFG

CLASSES = 5

# Of 1,347 training images, where no run has to last until it is stopped.
FEW_DIGITS = ("DATASET.SUBSET", "128")


def mostly_slow(cases, *always):
    """``cases`` for parametrize: those in ``always`` in every run, the rest with make test-slow."""
    assert set(always) <= set(cases)
    return [c if c in always else pytest.param(c, marks=pytest.mark.slow) for c in cases]


@contextmanager
def few_digits(images: int, validation: int):
    """Inside, the data set digits has so many images: the first ones, then those to validate."""
    few = first_digits(images, validation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "read_digits", lambda: few)
        yield


def first_digits(images: int, validation: int):
    """What ``read_digits`` returns then."""
    parts = slice(images), slice(images, images + validation)
    pictures, labels = digits.read_in_order()
    return tuple((pictures[part], labels[part]) for part in parts)


class ToyNet(nn.Module):
    """Two convolutions, optionally normalised, and a linear layer; any image size."""

    def __init__(self, width: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x):
        first = F.relu(self.bn1(self.conv1(x)))
        second = F.softplus(self.conv2(first))
        pooled = second.mean((2, 3))
        return self.fc(pooled), {
            "feats": [first, first, second],
            "preact_feats": [first, first, second],
            "pooled_feat": pooled,
        }


class SmallNet(nn.Module):
    """Three convolutions at a quarter of the size, quick to learn digits, with all features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [self.bn2, self.bn3]

    def get_stage_channels(self) -> list[int]:
        return [self.fc.in_features] * 3

    def forward(self, x):
        stem = F.relu(self.bn1(self.conv1(x)))
        middle = self.bn2(self.conv2(stem))
        last = self.bn3(self.conv3(F.relu(middle)))
        pooled = F.relu(last).mean((2, 3))
        return self.fc(pooled), {
            "feats": [stem, F.relu(middle), F.relu(last)],
            "preact_feats": [stem, middle, last],
            "pooled_feat": pooled,
        }


class ToyHint(Distiller):
    """A feature loss through a regressor of its own, beside two parts of supervision."""

    supervised_losses = ("loss_ce", "loss_entropy")

    def __init__(self, student, teacher, cfg=None):
        super().__init__(student, teacher, cfg)
        self.regressor = nn.Linear(student.fc.in_features, teacher.fc.in_features)

    def get_learnable_parameters(self):
        return [*super().get_learnable_parameters(), *self.regressor.parameters()]

    def forward_train(self, image, target, **kwargs):
        logits, features = self.student(image)
        _, teacher_features = self.forward_teacher(image)
        hint = F.mse_loss(self.regressor(features["pooled_feat"]), teacher_features["pooled_feat"])
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        return logits, {
            "loss_ce": 0.7 * self.cross_entropy(logits, target),
            "loss_entropy": 0.1 * entropy,
            "loss_kd": 3.0 * hint,
        }


class CrossBatchToyHint(CrossBatchDistiller, ToyHint):
    pass


class ListLoader(list):
    """A fixed list of batches with a second stream, for trainers."""

    def __init__(self, batches, auxiliary=()):
        super().__init__(batches)
        self.auxiliary = list(auxiliary)

    def stream(self, name, batch_size=None):
        return ListLoader(self.auxiliary)


def batches(seed: int, steps: int = 4, size: int = 6, dtype=torch.float32):
    """``steps`` tuples (image, target, index)."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(steps):
        yield (
            torch.randn(size, 3, 8, 8, generator=generator).to(dtype),
            torch.randint(CLASSES, (size,), generator=generator),
            torch.arange(size) + i * size,
        )


def loader(seed: int = 0, dtype=torch.float32, **options) -> ListLoader:
    return ListLoader(
        batches(seed, dtype=dtype, **options), batches(seed + 1000, dtype=dtype, **options)
    )


def networks(norm: bool = True, dtype=torch.float32, student_seed: int = 0):
    """A student and a wider teacher, always the same ones."""
    torch.manual_seed(student_seed)
    student = ToyNet(4, norm).to(dtype)
    torch.manual_seed(99)
    teacher = ToyNet(6, norm).to(dtype).eval()
    return student, teacher


def config(tmp_path, *opts):
    """The defaults with quiet logs below ``tmp_path`` and short schedules."""
    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("LOG.PREFIX", str(tmp_path), "LOG.SAVE_CHECKPOINT_FREQ", 100),
            *("SOLVER.DEVICE", "cpu", "SOLVER.EPOCHS", 2, "SOLVER.LR_DECAY_STAGES", [1]),
            *opts,
        ]
    )
    return cfg
