"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (arXiv:1707.01219)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config

from ._base import Distiller
from ._common import loss_weights, match_size, total
from ._registry import distiller_dict


def _kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the squared inner products between the rows of ``a`` and ``b`` [B, C, H*W]."""
    return (a @ b.transpose(1, 2)).pow(2).mean()


def single_stage_nst_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps [B, C, H, W]."""
    f_s, f_t = (F.normalize(f.flatten(2), dim=2) for f in match_size(f_s, f_t))
    own = _kernel_mean(f_t, f_t).detach() + _kernel_mean(f_s, f_s)
    return own - 2 * _kernel_mean(f_s, f_t)


def nst_loss(g_s: Sequence[Tensor], g_t: Sequence[Tensor]) -> Tensor:
    """:func:`single_stage_nst_loss` with a polynomial kernel, summed over the stages.

    Args:
        g_s, g_t: one map [B, C, H, W] per stage; of each pair the larger is pooled. Where one
            list is longer, its surplus at the end is not used.

    Returns:
        Scalar.
    """
    return total(single_stage_nst_loss(f_s, f_t) for f_s, f_t in zip(g_s, g_t, strict=False))


@distiller_dict.register("NST")
class NST(Distiller):
    """Neuron selectivity transfer, with the weights of ``cfg.NST``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`nst_loss`
    of the maps after the stem.
    """

    family, needs, year = "features", "maps", 2017
    settings = loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=50.0)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.NST.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.NST.LOSS.FEAT_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * nst_loss(feature_s["feats"][1:], feature_t["feats"][1:]),
        }
        return logits, losses
