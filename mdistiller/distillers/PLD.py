"""PLD: A Choice-Theoretic List-Wise Knowledge Distillation (Bassam et al., arXiv:2506.12542)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, positive

from ._base import Distiller
from ._precision import at_least_single
from ._registry import distiller_dict


@at_least_single
def pld_terms(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """Weighted Plackett-Luce likelihood of a ranking: the true class, then as the teacher ranks.

    Args:
        logits_student, logits_teacher: [B, C].
        target: class labels [B].
        temperature: of the teacher's probabilities, which weigh the places of the ranking.

    Returns:
        [B, C], the weighted negative log-likelihood of each place. The first place's is the
        cross-entropy times the teacher's probability of the true class.
    """
    first = F.one_hot(target, logits_teacher.shape[1]).bool()
    order = logits_teacher.masked_fill(first, torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    weights = F.softmax(logits_teacher / temperature, dim=1).gather(1, order)
    ranked = logits_student.gather(1, order)
    # Logarithm of the mass of each place and all behind it.
    remaining = ranked.flip(1).logcumsumexp(dim=1).flip(1)
    return weights * (remaining - ranked)


def pld_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> Tensor:
    """:func:`pld_terms` summed over the places; the mean over the batch, a scalar."""
    return pld_terms(logits_student, logits_teacher, target, temperature).sum(dim=1).mean()


@distiller_dict.register("PLD")
class PLD(Distiller):
    """List-wise distillation in place of the cross-entropy, with the settings of ``cfg.PLD``.

    Supervised loss ``loss_ce``: the first place's part of :func:`pld_loss`, a cross-entropy
    weighted by the teacher's confidence in the label. Distillation loss ``loss_kd``: the other
    places'. Their sum is :func:`pld_loss`; there is no weight between them.
    """

    family, needs, year = "logits", "logits", 2025
    settings = {
        "TEMPERATURE": Setting(1.0, positive, "of the teacher"),
    }
    compares_logits = True
    reads_cache = ("logits",)

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.temperature = cfg.PLD.TEMPERATURE

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        logits_teacher, _ = self.forward_teacher(image)
        pair = self.compared(logits_student, logits_teacher)
        terms = pld_terms(*pair, target, self.temperature)
        losses = {
            "loss_ce": terms[:, 0].mean(),
            "loss_kd": terms[:, 1:].sum(dim=1).mean(),
        }
        return logits_student, losses
