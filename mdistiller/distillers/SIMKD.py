"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., arXiv:2203.14001)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ._common import match_size


def make_projector(in_channels: int, out_channels: int, factor: int = 2) -> nn.Sequential:
    """From the student's last map to the teacher's: 1x1, 3x3, 1x1, each with BN and ReLU.

    Args:
        factor: the inner convolutions have ``out_channels // factor`` channels.
    """
    inner = out_channels // factor

    def conv(c_in: int, c_out: int, size: int) -> list[nn.Module]:
        layer = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
        return [layer, nn.BatchNorm2d(c_out), nn.ReLU()]

    return nn.Sequential(
        *conv(in_channels, inner, 1), *conv(inner, inner, 3), *conv(inner, out_channels, 1)
    )


def simkd_loss(projector: nn.Module, map_student: Tensor, map_teacher: Tensor):
    """Mean squared difference of the projected student map and the teacher's.

    Args:
        projector: see :func:`make_projector`.
        map_student, map_teacher: [B, C_s, H, W] and [B, C_t, H', W'], the rectified last maps;
            the larger is pooled to the smaller's size.

    Returns:
        The loss, a scalar, and the projected map, of the teacher's channels.
    """
    map_student, map_teacher = match_size(map_student, map_teacher)
    projected = projector(map_student)
    return F.mse_loss(projected, map_teacher), projected
