"""Curriculum Temperature for Knowledge Distillation (Li et al., arXiv:2211.16231)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import count, need_argument
from ._registry import distiller_dict
from .KD import kd_loss


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.factor * gradient, None


def reversal(epoch: float, length: float = 10) -> float:
    """What the temperature's gradient is multiplied by: falls from 0 to -1 along a cosine.

    Args:
        epoch: counted from 1.
        length: the epoch from which on it is -1; 0 for -1 always.
    """
    progress = min(epoch / length, 1.0) if length > 0 else 1.0
    return -(1 - math.cos(math.pi * progress)) / 2


class GlobalTemperature(nn.Module):
    """One temperature for all samples, ``start + width * sigmoid(theta)``, that is learned.

    Args:
        start, width: the temperature lies between ``start`` and ``start + width``.
    """

    def __init__(self, start: float = 1.0, width: float = 20.0) -> None:
        super().__init__()
        self.start = start
        self.width = width
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, factor: float) -> Tensor:
        """The temperature, a scalar; ``theta`` gets ``factor`` times the gradient.

        With a negative factor (:func:`reversal`) descent in everything else is ascent in theta.
        """
        theta = _ScaledGradient.apply(self.theta, factor)
        return self.start + self.width * theta.sigmoid()[0]


@distiller_dict.register("CTKD")
class CTKD(Distiller):
    """KD with a learned temperature, with the settings of ``cfg.CTKD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``:
    :func:`~.KD.kd_loss` at the temperature of the module ``global_temperature``, which is
    trained with the student, but to make the loss larger (:func:`reversal`), and saved with it.
    """

    family, needs, year = "logits", "logits, a temperature", 2023
    settings = {
        "CE_WEIGHT": Setting(0.1, not_negative, "weight of the cross-entropy"),
        "KD_WEIGHT": Setting(0.9, not_negative, "weight of the distillation loss"),
        "T_START": Setting(1.0, positive, "lower bound of the temperature"),
        "T_WIDTH": Setting(20.0, positive, "upper bound less lower bound"),
        "REVERSAL_EPOCHS": Setting(
            10, not_negative, "epochs in which the reversal reaches its full strength"
        ),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.CTKD.CE_WEIGHT
        self.kd_loss_weight = cfg.CTKD.KD_WEIGHT
        self.length = cfg.CTKD.REVERSAL_EPOCHS
        self.global_temperature = GlobalTemperature(cfg.CTKD.T_START, cfg.CTKD.T_WIDTH)

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.global_temperature.parameters())

    def get_extra_parameters(self):
        return count(self.global_temperature.parameters())

    def forward_train(self, image, target, **kwargs):
        factor = reversal(need_argument(kwargs, "epoch", "CTKD"), self.length)
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * kd_loss(*pair, self.global_temperature(factor)),
        }
        return logits_student, losses
