"""Class Attention Transfer Based Knowledge Distillation (Guo et al., arXiv:2304.12777)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Setting, at_least_one, not_negative
from mdistiller.dataset import image_size
from mdistiller.models._common import average_pool
from mdistiller.models.heads import head_of, last_map, without_bias

from ._base import Distiller
from ._common import check_last_map
from ._registry import distiller_dict


def class_activation_maps(network: nn.Module, features: Mapping[str, Any]) -> Tensor:
    """The classifier's weights, without its bias, on each position of the last map.

    Args:
        network, features: what returned what.

    Returns:
        [B, C, H, W], one map per class.
    """
    weight = head_of(network).weight
    return F.conv2d(last_map(features), weight[..., None, None])


def _pooled(cam: Tensor, resolution: int, normalize: bool) -> Tensor:
    """[B, C, r^2], each row divided by its norm if asked for."""
    pooled = average_pool(cam, resolution, resolution).flatten(2)
    return F.normalize(pooled, dim=2) if normalize else pooled


def binarize(cam: Tensor) -> Tensor:
    """1 where a map of ``cam`` [B, C, H, W] is above its mean absolute value, else 0."""
    return (cam > cam.abs().mean(dim=(2, 3), keepdim=True)).to(cam.dtype)


def cat_loss(cam_student: Tensor, cam_teacher: Tensor, resolution: int, normalize: bool) -> Tensor:
    """Mean squared difference of the class activation maps after pooling.

    Args:
        cam_student, cam_teacher: [B, C, H, W]; height and width may differ.
        resolution: both are pooled to this height and width.
        normalize: divide each pooled map by its norm.

    Returns:
        Scalar, the mean over B, C and the positions.
    """
    student, teacher = (_pooled(c, resolution, normalize) for c in (cam_student, cam_teacher))
    return F.mse_loss(student, teacher)


@distiller_dict.register("CATKD")
class CATKD(Distiller):
    """Class attention transfer, with the settings of ``cfg.CATKD``.

    :attr:`student` becomes the student with a classifier without bias: its class activation
    maps are the classifier's weights on the map that is pooled, and their means the logits. The
    teacher's maps leave its bias out, too. Supervised loss ``loss_ce``: cross-entropy.
    Distillation loss ``loss_kd``: :func:`cat_loss`.

    Raises:
        ConfigError: a network does not return the map that its classifier pools.
    """

    family, needs, year = "features", "maps", 2023
    settings = {
        "CE_WEIGHT": Setting(1.0, not_negative, "weight of the cross-entropy"),
        "CAT_WEIGHT": Setting(400.0, not_negative, "weight of the distillation loss"),
        "RESOLUTION": Setting(2, at_least_one, "height and width of the maps compared"),
        "NORMALIZE": Setting(True, doc="divide each map by its norm"),
        "BINARIZE": Setting(
            False,
            doc="the paper's analysis: the teacher's maps as 0 and 1, above their mean or not",
        ),
    }

    def __init__(self, student, teacher, cfg) -> None:
        node = cfg.CATKD
        for network in (student, teacher):
            check_last_map(
                network, [image_size(cfg.DATASET.TYPE, cfg.DATASET.IMAGE_SIZE)] * 2, "CATKD"
            )
        super().__init__(without_bias(student), teacher, cfg)
        self.ce_loss_weight = node.CE_WEIGHT
        self.cat_loss_weight = node.CAT_WEIGHT
        self.options = (node.RESOLUTION, node.NORMALIZE)
        self.binarize = node.BINARIZE

    def forward_train(self, image, target, **kwargs):
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        cam_student = class_activation_maps(self.student, feature_s)
        cam_teacher = class_activation_maps(self.teacher, feature_t).detach()
        if self.binarize:
            cam_teacher = binarize(cam_teacher)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.cat_loss_weight * cat_loss(cam_student, cam_teacher, *self.options),
        }
        return logits, losses
