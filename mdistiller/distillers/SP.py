"""Similarity-Preserving Knowledge Distillation (Tung & Mori, arXiv:1907.09682)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config

from ._base import Distiller
from ._common import loss_weights, total
from ._registry import distiller_dict


def _similarity(feature: Tensor) -> Tensor:
    """Rows [B, B] of unit length: inner products of each sample of ``feature`` with all."""
    flat = feature.flatten(1)
    return F.normalize(flat @ flat.t())


def sp_loss(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the batch similarity matrices, summed over the stages.

    Args:
        g_s, g_t: one feature [B, ...] per stage. Where one list is longer, its surplus at the
            end is not used.

    Returns:
        Shape [1].
    """
    pairs = zip(g_s, g_t, strict=False)
    return total(F.mse_loss(_similarity(f_s), _similarity(f_t)) for f_s, f_t in pairs).reshape(1)


@distiller_dict.register("SP")
class SP(Distiller):
    """Similarity preservation in the last map (without maps in the pooled feature).

    The weights are those of ``cfg.SP``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`sp_loss`.
    """

    family, needs, year = "relations", "maps", 2019
    relates_images = True
    reads_cache = ("last_map",)
    settings = loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=3000.0)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.SP.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.SP.LOSS.FEAT_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * sp_loss([_compared(feature_s)], [_compared(feature_t)]),
        }
        return logits, losses


def _compared(features: Mapping[str, Any]) -> Tensor:
    """The last map, or the pooled feature of a network of tokens."""
    return features["feats"][-1] if "feats" in features else features["pooled_feat"]
