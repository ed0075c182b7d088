"""Class Attention Transfer Based Knowledge Distillation (Guo et al., arXiv:2304.12777)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def _pooled(cam: Tensor, resolution: int, normalize: bool) -> Tensor:
    """[B, C, r^2], each row divided by its norm if asked for."""
    pooled = F.adaptive_avg_pool2d(cam, resolution).flatten(2)
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
