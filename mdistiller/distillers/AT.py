"""Paying More Attention to Attention (Zagoruyko & Komodakis, arXiv:1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting, positive
from mdistiller.errors import ConfigError

from ._base import Distiller
from ._common import loss_weights, match_size, total
from ._registry import distiller_dict


def attention(feature: Tensor, p: float) -> Tensor:
    """Attention maps [B, H*W] of unit length: channel means of the p-th power of [B, C, H, W]."""
    if p != int(p):
        feature = feature.abs()  # a fractional power of a negative number is no number
    return F.normalize(feature.pow(p).mean(dim=1).flatten(1))


def at_loss(g_s: Sequence[Tensor], g_t: Sequence[Tensor], p: float) -> Tensor:
    """Mean squared difference of the attention maps, summed over the stages.

    Args:
        g_s, g_t: one map [B, C, H, W] per stage; of each pair the larger is pooled. Where one
            list is longer, its surplus at the end is not used.
        p: the power to which activations are raised.

    Returns:
        Scalar.
    """
    pairs = [match_size(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False)]
    return total(F.mse_loss(attention(f_s, p), attention(f_t, p)) for f_s, f_t in pairs)


@distiller_dict.register("AT")
class AT(Distiller):
    """Attention transfer, with the weights of ``cfg.AT``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`at_loss`
    of the maps after the stem.
    """

    family, needs, year = "features", "maps", 2017
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=1000.0),
        "P": Setting(2, positive, "power of the activations in an attention map", kind="real"),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.p = cfg.AT.P
        if self.p < 1:
            raise ConfigError(
                f"AT.P {self.p} must be at least 1: the slope of less is infinite at 0"
            )
        self.ce_loss_weight = cfg.AT.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.AT.LOSS.FEAT_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * at_loss(feature_s["feats"][1:], feature_t["feats"][1:], self.p),
        }
        return logits, losses
