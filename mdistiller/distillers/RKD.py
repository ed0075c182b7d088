"""Relational Knowledge Distillation (Park et al., arXiv:1904.05068)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting

from ._base import Distiller
from ._common import loss_weights
from ._registry import distiller_dict

_SHORTEST = 1e-12


def pairwise_distances(e: Tensor, squared: bool, eps: float) -> Tensor:
    """Euclidean distances [B, B] between the rows of ``e`` [B, D]; zero on the diagonal.

    Args:
        squared: return their squares.
        eps: no square off the diagonal is less, so that the root has a finite slope.
    """
    square = e.pow(2).sum(dim=1)
    dist = (square[:, None] + square[None, :] - 2 * e @ e.t()).clamp(min=eps)
    if not squared:
        # With eps = 0 equal rows would meet the root's infinite slope, in every torch whose
        # clamp passes the gradient on at its bound (2.14 does not).
        dist = torch.where(dist > 0, dist, 1).sqrt() * (dist > 0)
    same = torch.eye(len(e), dtype=torch.bool, device=e.device)
    return dist.masked_fill(same, 0)


def _in_units_of_their_mean(dist: Tensor) -> Tensor:
    mean = dist.sum() / (dist > 0).sum().clamp(min=1)
    return dist / torch.where(mean > 0, mean, 1)


def _directions(e: Tensor) -> Tensor:
    """Unit vectors [B, B, D] from every row of ``e`` [B, D] to every other.

    Where two rows agree to rounding, the direction between them is noise, whose slope (the
    inverse of their distance) would drown all other gradients: it counts as a constant there.
    """
    difference = e[None, :] - e[:, None]
    length = difference.norm(dim=2, keepdim=True)
    norm = e.detach().norm(dim=1)
    noise = 16 * torch.finfo(e.dtype).eps * (norm[:, None] + norm[None, :])[..., None]
    fixed = length <= noise.clamp(min=_SHORTEST)
    difference = torch.where(fixed, difference.detach(), difference)
    length = torch.where(fixed, length.detach().clamp(min=_SHORTEST), length)
    return difference / length


def _angles(e: Tensor) -> Tensor:
    """Cosines [B, B, B] of the angles at each row between two others."""
    d = _directions(e)
    return d @ d.transpose(1, 2)


def rkd_loss(
    f_s: Tensor,
    f_t: Tensor,
    squared: bool = False,
    eps: float = 1e-12,
    distance_weight: float = 25,
    angle_weight: float = 50,
) -> Tensor:
    """How the distances and angles within a batch differ between student and teacher.

    Args:
        f_s, f_t: features [B, D_s] and [B, D_t]; further dimensions are flattened.
        squared: compare squared distances.
        eps: least squared distance.
        distance_weight, angle_weight: weights of the two smooth L1 losses. The time and memory
            of the second grow with the third power of B.

    Returns:
        Scalar; zero for a single sample or for features that do not differ in either network.
    """
    f_s, f_t = f_s.flatten(1), f_t.flatten(1)
    dist_s, dist_t = (
        _in_units_of_their_mean(pairwise_distances(f, squared, eps)) for f in (f_s, f_t)
    )
    loss_distance = F.smooth_l1_loss(dist_s, dist_t)
    loss_angle = F.smooth_l1_loss(_angles(f_s), _angles(f_t))
    return distance_weight * loss_distance + angle_weight * loss_angle


@distiller_dict.register("RKD")
class RKD(Distiller):
    """Relational distillation of the pooled features, with the weights of ``cfg.RKD``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`rkd_loss`,
    distances and angles together.
    """

    family, needs, year = "relations", "pooled features", 2019
    relates_images = True
    reads_cache = ("pooled_feat",)
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0),
        "DISTANCE_WEIGHT": Setting(25, doc="of the distance loss", kind="real"),
        "ANGLE_WEIGHT": Setting(50, doc="of the angle loss", kind="real"),
        "PDIST.EPSILON": Setting(1e-12, doc="smallest squared distance"),
        "PDIST.SQUARED": Setting(False, doc="squared distances"),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.distance_weight = cfg.RKD.DISTANCE_WEIGHT
        self.angle_weight = cfg.RKD.ANGLE_WEIGHT
        self.ce_loss_weight = cfg.RKD.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.RKD.LOSS.FEAT_WEIGHT
        self.eps = cfg.RKD.PDIST.EPSILON
        self.squared = cfg.RKD.PDIST.SQUARED

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        relations = rkd_loss(
            feature_s["pooled_feat"],
            feature_t["pooled_feat"],
            self.squared,
            self.eps,
            self.distance_weight,
            self.angle_weight,
        )
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight * relations,
        }
        return logits, losses
