"""Self-supervised Knowledge Distillation Using Singular Value Decomposition (arXiv:1807.06819)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mdistiller.config import Config, Setting, at_least_one
from mdistiller.errors import ConfigError
from mdistiller.models import name_of

from ._base import Distiller
from ._common import loss_weights
from ._registry import distiller_dict

# The slope of a singular vector is the inverse of the gap between squared singular values.
# Gaps below these (relative to the largest square; absolute) are damped instead of followed.
_RELATIVE_GAP = 1e-5
_ABSOLUTE_GAP = 1e-12

# How many more vectors of the student than of the teacher are candidates for a match.
_SPARE = 3


class _Eigenvectors(torch.autograd.Function):
    """Eigenvalues and eigenvectors of symmetric matrices, largest first.

    Each vector has the sign that makes its sum positive. The backward pass is exact for well
    separated values and finite for all: 1 / gap becomes gap / (gap^2 + damping^2), which
    vanishes between equal values, where the vectors are arbitrary.
    """

    @staticmethod
    def forward(ctx, matrices: Tensor, n: int) -> tuple[Tensor, Tensor]:
        finite = matrices.isfinite().all(dim=(1, 2), keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, matrices, 0))
        values, vectors = values.flip(1), vectors.flip(2)
        vectors = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -vectors, vectors)
        # eigh refuses what is not finite; whoever watches the loss is to see it instead.
        vectors = torch.where(finite, vectors, torch.nan)
        ctx.save_for_backward(values, vectors)
        first = values[:, :n].clone()
        ctx.mark_non_differentiable(first)
        return first, vectors[:, :, :n].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        n = grad.shape[2]
        gap = values[:, None, :n] - values[:, :, None]
        damping = _RELATIVE_GAP * values[:, :1, None] + _ABSOLUTE_GAP
        inner = gap / (gap**2 + damping**2) * (vectors.transpose(1, 2) @ grad)
        outer = vectors @ inner @ vectors[:, :, :n].transpose(1, 2)
        return (outer + outer.transpose(1, 2)) / 2, None


def right_singular_vectors(feature: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first ``n`` singular values and right singular vectors of each sample's map.

    A map [C, H, W] is taken as a matrix [C*H, W]. They come from its Gram matrix [W, W], in
    double precision (single on mps, which has no other).

    Args:
        feature: [B, C, H, W].

    Returns:
        values [B, m] and vectors [B, W, m] with m = min(n, C*H, W); only the vectors have a
        gradient, and that is finite for every finite map.
    """
    dtype = torch.float32 if feature.device.type == "mps" else torch.float64
    x = feature.flatten(1, 2).to(dtype)
    values, vectors = _Eigenvectors.apply(x.transpose(1, 2) @ x, min(n, *x.shape[1:]))
    return values.clamp(min=0).sqrt(), vectors


def _match(v_s: Tensor, v_t: Tensor) -> Tensor:
    """For every vector of ``v_t`` [B, W, k] the most similar of ``v_s`` [B, W, m], same sign."""
    cosine = v_s.detach().transpose(1, 2) @ v_t
    best = cosine.abs().argmax(dim=1, keepdim=True)
    sign = cosine.gather(1, best).sign()
    return v_s.gather(2, best.expand(-1, v_s.shape[1], -1)) * sign


def _relation(v: Tensor, previous: Tensor) -> Tensor:
    """Radial basis function [B, W, W', k] of the entries of two stages' vectors."""
    return torch.exp(-(v[:, :, None] - previous[:, None]).pow(2) / 8)


def kdsvd_loss(g_s: Sequence[Tensor], g_t: Sequence[Tensor], k: int) -> Tensor:
    """How the relations between neighbouring stages' singular vectors differ.

    Args:
        g_s, g_t: one map [B, C, H, W] per stage; B and W agree within a stage.
        k: how many right singular vectors of the teacher are used.

    Returns:
        Scalar: squared differences, summed over stages and entries, per sample.
    """
    loss = torch.zeros((), device=g_s[0].device)
    before_s: Tensor | None = None
    before_t: Tensor | None = None
    for f_s, f_t in zip(g_s, g_t, strict=False):
        s_t, v_t = right_singular_vectors(f_t.detach(), k)
        _, v_s = right_singular_vectors(f_s, k + _SPARE)
        weight = F.normalize(s_t, dim=1)[:, None]
        v_s, v_t = _match(v_s, v_t) * weight, v_t * weight
        if before_s is not None and before_t is not None:
            loss = loss + (_relation(v_s, before_s) - _relation(v_t, before_t)).pow(2).sum()
        before_s, before_t = v_s, v_t
    return (loss / len(g_s[0])).to(torch.promote_types(g_s[0].dtype, torch.float32))


@distiller_dict.register("KDSVD")
class KDSVD(Distiller):
    """Distillation of singular vectors, with the weights of ``cfg.KDSVD``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`kdsvd_loss`
    of the maps after the stem.
    """

    family, needs, year = "features", "maps", 2018
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0),
        "K": Setting(1, at_least_one, "singular vectors of the teacher"),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.k = cfg.KDSVD.K
        self.ce_loss_weight = cfg.KDSVD.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.KDSVD.LOSS.FEAT_WEIGHT

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        maps_s, maps_t = feature_s["feats"][1:], feature_t["feats"][1:]
        self._check_widths(maps_s, maps_t)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight * kdsvd_loss(maps_s, maps_t, self.k),
        }
        return logits, losses

    def _check_widths(self, maps_s: Sequence[Tensor], maps_t: Sequence[Tensor]) -> None:
        for stage, (f_s, f_t) in enumerate(zip(maps_s, maps_t, strict=False), start=1):
            if f_s.shape[3] != f_t.shape[3]:
                raise ConfigError(
                    f"KDSVD needs maps of equal width, but at stage {stage} the student "
                    f"{name_of(self.student)} has {f_s.shape[3]} and the teacher "
                    f"{name_of(self.own_teacher)} {f_t.shape[3]}; choose another pair"
                )
