"""Decoupled distillation with the weights of EA-KD (Su et al., arXiv:2311.13621); see EAKD.py."""

from __future__ import annotations

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import need_argument, warmup_factor
from ._registry import distiller_dict
from .DKD import dkd_loss
from .EAKD import entropy_weights


@distiller_dict.register("EADKD")
class EADKD(Distiller):
    """DKD with a weight per sample, with the settings of ``cfg.EADKD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: the mean of
    :func:`~.DKD.dkd_loss` of each sample times its :func:`~.EAKD.entropy_weights`, times DKD's
    warm-up factor.
    """

    family, needs, year = "logits", "logits", 2023
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "ALPHA": Setting(1.0, not_negative, "weight of the true class's part"),
        "BETA": Setting(8.0, not_negative, "weight of the other classes' part"),
        "TEMPERATURE": Setting(4.0, positive, "softens both predictions"),
        "WARMUP": Setting(20, not_negative, "epochs of linear warm-up of the distillation loss"),
        "ENTROPY_TEMPERATURE": Setting(3.0, positive, "of the entropies"),
        "BOUND": Setting(
            100.0, not_negative, "what the student's entropy is divided by; 0: log of the classes"
        ),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        node = cfg.EADKD
        self.ce_loss_weight = node.CE_WEIGHT
        self.dkd_options = (node.ALPHA, node.BETA, node.TEMPERATURE)
        self.warmup = node.WARMUP
        self.entropy_options = (node.ENTROPY_TEMPERATURE, node.BOUND)

    def forward_train(self, image, target, **kwargs):
        factor = warmup_factor(need_argument(kwargs, "epoch", "EADKD"), self.warmup)
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        weights = entropy_weights(logits_student, logits_teacher, *self.entropy_options, clamp=True)
        pair = self.compared(logits_student, logits_teacher)
        parts = dkd_loss(*pair, target, *self.dkd_options, per_sample=True)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits_student, target),
            "loss_kd": factor * (weights * parts).mean(),
        }
        return logits_student, losses
