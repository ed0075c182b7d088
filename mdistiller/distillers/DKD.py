"""Decoupled Knowledge Distillation (Zhao et al., arXiv:2203.08679)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._base import Distiller
from ._common import need_argument, warmup_factor


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target against rest [B, 2], and within the rest [B, C - 1]."""
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = classes + (classes >= target[:, None])
    rest = logits.gather(1, others)
    mass = rest.logsumexp(dim=1, keepdim=True)
    target_or_rest = torch.cat([logits.gather(1, target[:, None]), mass], dim=1)
    return F.log_softmax(target_or_rest, dim=1), rest - mass


def dkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """``alpha`` times target-class plus ``beta`` times non-target-class distillation.

    Both are KL divergences of softened predictions times the squared temperature: the first
    between target and rest, the second among the other classes alone.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        alpha, beta: weights of the two parts.
        temperature: softens all distributions.

    Returns:
        Scalar, the mean over the batch.
    """
    binary_s, rest_s = _split(logits_student / temperature, target)
    binary_t, rest_t = _split(logits_teacher / temperature, target)
    tckd = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    nckd = F.kl_div(rest_s, rest_t, reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * temperature**2


class DKD(Distiller):
    """Decoupled distillation, with the settings of ``cfg.DKD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`dkd_loss`,
    both of its parts, times a factor that rises from 1 / WARMUP to 1 in the first WARMUP epochs.
    """

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.DKD.CE_WEIGHT
        self.alpha = cfg.DKD.ALPHA
        self.beta = cfg.DKD.BETA
        self.temperature = cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def forward_train(self, image, target, **kwargs):
        factor = warmup_factor(need_argument(kwargs, "epoch", "DKD"), self.warmup)
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        decoupled = dkd_loss(
            logits_student, logits_teacher, target, self.alpha, self.beta, self.temperature
        )
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": factor * decoupled,
        }
        return logits_student, losses
