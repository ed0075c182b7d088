"""Decoupled Knowledge Distillation (Zhao et al., arXiv:2203.08679)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from mdistiller.config import Config, Setting, positive

from ._base import Distiller
from ._common import divergence, need_argument, split_target, warmup_factor
from ._precision import at_least_single
from ._registry import distiller_dict


@at_least_single
def dkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    per_sample: bool = False,
) -> Tensor:
    """``alpha`` times target-class plus ``beta`` times non-target-class distillation.

    Both are KL divergences of softened predictions times the squared temperature: the first
    between target and rest, the second among the other classes alone.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        alpha, beta: weights of the two parts.
        temperature: softens all distributions.
        per_sample: return [B] instead of the mean over the batch.

    Returns:
        Scalar, or [B].
    """
    binary_s, rest_s = split_target(logits_student / temperature, target)
    binary_t, rest_t = split_target(logits_teacher / temperature, target)
    tckd = divergence(binary_s, binary_t, per_sample, log_target=True)
    nckd = divergence(rest_s, rest_t, per_sample, log_target=True)
    return (alpha * tckd + beta * nckd) * temperature**2


@distiller_dict.register("DKD")
class DKD(Distiller):
    """Decoupled distillation, with the settings of ``cfg.DKD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`dkd_loss`,
    both of its parts, times a factor that rises from 1 / WARMUP to 1 in the first WARMUP epochs.
    """

    family, needs, year = "logits", "logits", 2022
    settings = {
        "CE_WEIGHT": Setting(1.0, doc="weight of the cross-entropy"),
        "ALPHA": Setting(1.0, doc="weight of the target class's part"),
        "BETA": Setting(8.0, doc="weight of the other classes' part"),
        "T": Setting(4.0, positive, "temperature"),
        "WARMUP": Setting(20, doc="epochs over which the distillation loss is faded in"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    @classmethod
    def check_classes(cls, num_classes: int) -> None:
        super().check_classes(num_classes)
        if num_classes == 2:
            warnings.warn(
                "DKD.BETA has no effect on data of two classes: beside the target there is one "
                "class only, so that nothing is distilled among the others",
                stacklevel=3,
            )

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.DKD.CE_WEIGHT
        self.alpha = cfg.DKD.ALPHA
        self.beta = cfg.DKD.BETA
        self.temperature = cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        factor = warmup_factor(need_argument(kwargs, "epoch", "DKD"), self.warmup)
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        mine, theirs = self.compared(logits_student, logits_teacher)
        decoupled = dkd_loss(mine, theirs, target, self.alpha, self.beta, self.temperature)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": factor * decoupled,
        }
        return logits_student, losses
