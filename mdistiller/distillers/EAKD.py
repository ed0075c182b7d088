"""EA-KD: Entropy-based Adaptive Knowledge Distillation (Su et al., arXiv:2311.13621)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._precision import at_least_single
from ._registry import distiller_dict
from .KD import kd_loss

_EPS = 1e-10


def _entropy(logits: Tensor, temperature: float, clamp: bool) -> Tensor:
    p = F.softmax(logits / temperature, dim=1)
    log_p = (p.clamp(min=_EPS) if clamp else p + _EPS).log()
    return -(p * log_p).sum(dim=1)


@at_least_single
@torch.no_grad()
def entropy_weights(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float = 3.0,
    bound: float = 100.0,
    clamp: bool = False,
) -> Tensor:
    """Weights H_t / 2 (1 + H_s / bound) of the samples, from their entropies, in nats.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens the predictions whose entropies are taken.
        bound: what the student's entropy is divided by. The authors' KD and DKD files use the
            number 100 for CIFAR-100, which leaves the student at most 4.6 % of a weight; 0
            stands for log C, the upper bound of an entropy of C classes.
        clamp: keep 1e-10 from below under the logarithm (the authors' DKD file) instead of
            adding it (their KD file).

    Returns:
        [B], without a gradient, and not normalised: the mean is not 1.
    """
    h_s, h_t = (_entropy(z, temperature, clamp) for z in (logits_student, logits_teacher))
    return h_t / 2 * (1 + h_s / (bound or math.log(logits_student.shape[1])))


@distiller_dict.register("EAKD")
class EAKD(Distiller):
    """KD with a weight per sample, with the settings of ``cfg.EAKD``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: the mean of
    :func:`~.KD.kd_loss` of each sample times its :func:`entropy_weights`. These are of the
    logits as they are, also where DISTILLER.LOGIT_STANDARDIZATION changes what is compared.
    """

    family, needs, year = "logits", "logits", 2023
    settings = {
        "CE_WEIGHT": Setting(0.1, not_negative, "weight of the cross-entropy"),
        "KD_WEIGHT": Setting(0.9, not_negative, "weight of the distillation loss"),
        "TEMPERATURE": Setting(4.0, positive, "softens both predictions"),
        "ENTROPY_TEMPERATURE": Setting(3.0, positive, "of the entropies"),
        "BOUND": Setting(
            100.0, not_negative, "what the student's entropy is divided by; 0: log of the classes"
        ),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        node = cfg.EAKD
        self.ce_loss_weight = node.CE_WEIGHT
        self.kd_loss_weight = node.KD_WEIGHT
        self.temperature = node.TEMPERATURE
        self.entropy_options = (node.ENTROPY_TEMPERATURE, node.BOUND)

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        weights = entropy_weights(logits_student, logits_teacher, *self.entropy_options)
        pair = self.compared(logits_student, logits_teacher)
        parts = kd_loss(*pair, self.temperature, per_sample=True)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": self.kd_loss_weight * (weights * parts).mean(),
        }
        return logits_student, losses
