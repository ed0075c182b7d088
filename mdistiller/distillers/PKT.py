"""Learning Deep Representations with Probabilistic Knowledge Transfer (arXiv:1803.10837)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.config import Config

from ._base import Distiller
from ._common import loss_weights
from ._registry import distiller_dict


def _neighbour_probabilities(feature: Tensor, eps: float) -> Tensor:
    """Rows [B, B] that sum to 1: cosine similarity of each sample with all, moved to [0, 1]."""
    norm = feature.norm(dim=1, keepdim=True)
    # At a zero row the true slope is 1 / eps, which would throw the weights far away: none there.
    direction = torch.where(norm > 0, feature, feature.detach()) / (norm + eps)
    similarity = (direction @ direction.t() + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def pkt_loss(f_s: Tensor, f_t: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over all pairs of the KL divergence of the students' neighbourhood probabilities.

    Args:
        f_s, f_t: features [B, D_s] and [B, D_t]; further dimensions are flattened.
        eps: added to norms and probabilities.

    Returns:
        Scalar.
    """
    p_s, p_t = (_neighbour_probabilities(f.flatten(1), eps) for f in (f_s, f_t))
    return (p_t * torch.log((p_t + eps) / (p_s + eps))).mean()


@distiller_dict.register("PKT")
class PKT(Distiller):
    """Probabilistic transfer of the pooled features, with the weights of ``cfg.PKT``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`pkt_loss`.
    """

    family, needs, year = "relations", "pooled features", 2018
    relates_images = True
    reads_cache = ("pooled_feat",)
    settings = loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=30000.0)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.PKT.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.PKT.LOSS.FEAT_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * pkt_loss(feature_s["pooled_feat"], feature_t["pooled_feat"]),
        }
        return logits, losses
