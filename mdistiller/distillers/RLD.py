"""Knowledge Distillation with Refined Logits (Sun et al., arXiv:2408.07703)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import divergence, need_argument, split_target, warmup_factor
from ._precision import at_least_single
from ._registry import distiller_dict

# Far below any logit, and finite: what is masked out must not become NaN times zero.
_OUT = -1e30


@at_least_single
def sample_confidence_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Pulls the student's confidence in the true class to the teacher's in its top class.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: softens both; its square multiplies.

    Returns:
        Scalar, mean KL divergence of the two-class distributions; not zero for equal
        logits where the teacher is wrong.
    """
    log_s, _ = split_target(logits_student / temperature, target)
    log_t, _ = split_target(logits_teacher / temperature, logits_teacher.argmax(dim=1))
    return divergence(log_s, log_t, log_target=True) * temperature**2


@at_least_single
def masked_correlation_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """KL divergence among the classes that the teacher ranks strictly below the true one.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: softens both; its square multiplies.

    Returns:
        Scalar, the mean over the batch; a sample with less than two such classes
        counts 0, without a gradient.
    """
    kept = logits_teacher < logits_teacher.gather(1, target[:, None])
    log_s, log_t = (
        F.log_softmax((z / temperature).masked_fill(~kept, _OUT), dim=1)
        for z in (logits_student, logits_teacher)
    )
    parts = F.kl_div(log_s, log_t, reduction="none", log_target=True)
    # Where nothing is kept, both are uniform over what is masked out.
    return torch.where(kept, parts, 0).sum(dim=1).mean() * temperature**2


@distiller_dict.register("RLD")
class RLD(Distiller):
    """Refined logits, with the settings of ``cfg.RLD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: ALPHA times
    :func:`sample_confidence_loss` plus BETA times :func:`masked_correlation_loss`, times a
    factor that rises from 1 / WARMUP to 1 in the first WARMUP epochs.
    """

    family, needs, year = "logits", "logits", 2024
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "ALPHA": Setting(1.0, not_negative, "weight of the sample confidence"),
        "BETA": Setting(8.0, not_negative, "weight of the masked correlation"),
        "TEMPERATURE": Setting(4.0, positive, "of the masked correlation"),
        "ALPHA_TEMPERATURE": Setting(4.0, positive, "of the sample confidence"),
        "WARMUP": Setting(20, not_negative, "epochs of linear warm-up of the distillation loss"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.RLD.CE_WEIGHT
        self.alpha = cfg.RLD.ALPHA
        self.beta = cfg.RLD.BETA
        self.alpha_temperature = cfg.RLD.ALPHA_TEMPERATURE
        self.temperature = cfg.RLD.TEMPERATURE
        self.warmup = cfg.RLD.WARMUP

    def forward_train(self, image, target, **kwargs):
        factor = warmup_factor(need_argument(kwargs, "epoch", "RLD"), self.warmup)
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        scd = sample_confidence_loss(*pair, target, self.alpha_temperature)
        mcd = masked_correlation_loss(*pair, target, self.temperature)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": factor * (self.alpha * scd + self.beta * mcd),
        }
        return logits_student, losses
