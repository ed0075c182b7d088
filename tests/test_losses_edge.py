"""Losses of batches that a data set can produce and a formula may not survive."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdistiller.distillers.AT import at_loss
from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.KD import kd_loss
from mdistiller.distillers.KDSVD import kdsvd_loss
from mdistiller.distillers.NST import nst_loss
from mdistiller.distillers.PKT import pkt_loss
from mdistiller.distillers.RKD import rkd_loss
from mdistiller.distillers.SP import sp_loss


def of_maps(loss):
    """A loss of stages, as one of a single tensor: the second stage is half the size."""

    def both(x: Tensor) -> list[Tensor]:
        return [x, torch.nn.functional.avg_pool2d(x, 2)]

    return lambda s, t: loss(both(s), both(t))


def of_vectors(loss):
    return lambda s, t: loss(s.flatten(1), t.flatten(1))


LABELS = torch.tensor([0, 1, 2, 0, 1])
LOSSES = {
    "KD": of_vectors(lambda s, t: kd_loss(s, t, 4)),
    "DKD": of_vectors(lambda s, t: dkd_loss(s, t, LABELS[: len(s)], 1.0, 8.0, 4.0)),
    "RKD": of_vectors(rkd_loss),
    "PKT": of_vectors(pkt_loss),
    "AT": of_maps(lambda s, t: at_loss(s, t, 2)),
    "SP": of_maps(sp_loss),
    "NST": of_maps(nst_loss),
    "KDSVD": of_maps(lambda s, t: kdsvd_loss(s, t, 1)),
}


def normal(batch: int) -> Tensor:
    return torch.randn(batch, 3, 4, 4)


def one_zero_row(batch: int) -> Tensor:
    x = normal(batch)
    x[0] = 0
    return x


FEATURES = {
    "random": normal,
    "identical images": lambda batch: normal(1).repeat(batch, 1, 1, 1),
    "constant": lambda batch: torch.full((batch, 3, 4, 4), 0.7),
    "constant per image": lambda batch: (
        torch.arange(1.0, batch + 1).view(-1, 1, 1, 1).expand(batch, 3, 4, 4)
    ),
    "zero": lambda batch: torch.zeros(batch, 3, 4, 4),
    "one zero image": one_zero_row,
    "one number": lambda batch: torch.eye(48)[0].view(1, 3, 4, 4).repeat(batch, 1, 1, 1),
    "dead after ReLU": lambda batch: normal(batch).relu() * torch.tensor([0.0, 0, 1]).view(3, 1, 1),
    "large": lambda batch: 1e4 * normal(batch),
    "tiny": lambda batch: 1e-12 * normal(batch),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_loss_and_gradient_are_finite(name, batch):
    for teacher_kind, teacher in FEATURES.items():
        for student_kind, student in FEATURES.items():
            s = student(batch).clone().requires_grad_()
            loss = LOSSES[name](s, teacher(batch))
            (gradient,) = torch.autograd.grad(loss.sum(), s)
            where = f"student {student_kind}, teacher {teacher_kind}"
            assert loss.isfinite().all(), where
            assert gradient.isfinite().all(), where


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("kind", FEATURES)
def test_loss_of_a_network_with_itself_is_zero(name, batch, kind):
    x = FEATURES[kind](batch)
    assert LOSSES[name](x, x.clone()).abs().sum() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_loss_moves_a_student_that_differs(name):
    """The bounds above are no result of a loss that is always zero."""
    s = normal(5).requires_grad_()
    loss = LOSSES[name](s, normal(5))
    loss.sum().backward()
    assert loss.sum() > 1e-4
    assert s.grad.norm() > 1e-6
