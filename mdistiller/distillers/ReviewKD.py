"""Distilling Knowledge via Knowledge Review (Chen et al., arXiv:2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting
from mdistiller.dataset import image_size
from mdistiller.errors import ConfigError
from mdistiller.models._common import average_pool

from ._base import Distiller
from ._common import as_map, count, need_argument, need_feature, probe, total, warmup_factor
from ._registry import distiller_dict

# Channels of the fused maps, at most.
_MID_CHANNEL = 512


def hcl_loss(fstudent: Sequence[Tensor], fteacher: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: mean squared differences of maps and of their pooled versions.

    Pooled to 4, 2 and 1 (what is smaller than the map) with the weights 1/2, 1/4, ... in turn;
    divided by the sum of all weights, and summed over the stages.

    Args:
        fstudent, fteacher: one map [B, C, H, W] per stage, of equal shapes.

    Returns:
        Scalar.
    """
    return total(_single_stage_hcl(f_s, f_t) for f_s, f_t in zip(fstudent, fteacher, strict=False))


def _single_stage_hcl(f_s: Tensor, f_t: Tensor) -> Tensor:
    loss = F.mse_loss(f_s, f_t)
    weight = total = 1.0
    for size in (4, 2, 1):
        if size >= f_s.shape[2]:
            continue
        weight /= 2
        total += weight
        pooled_s, pooled_t = (average_pool(f, size, size) for f in (f_s, f_t))
        loss = loss + weight * F.mse_loss(pooled_s, pooled_t)
    return loss / total


def _resize(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, (size, size), mode="nearest")


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a batch has none.

    That is a single image's pooled map, as in the last batch of an epoch: one value per
    channel, whose variance would be 0 and which torch refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class ABF(nn.Module):
    """Attention-based fusion of a student map with what was reviewed in deeper stages.

    Args:
        in_channel, mid_channel, out_channel: channels of the map, of the review, and of the
            teacher's map.
        fuse: whether there is a deeper stage.
    """

    def __init__(self, in_channel: int, mid_channel: int, out_channel: int, fuse: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channel, mid_channel, kernel_size=1, bias=False),
            _BatchNorm(mid_channel),
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(mid_channel, out_channel, kernel_size=3, padding=1, bias=False),
            _BatchNorm(out_channel),
        )
        self.att_conv = None
        if fuse:
            self.att_conv = nn.Sequential(
                nn.Conv2d(2 * mid_channel, 2, kernel_size=1), nn.Sigmoid()
            )
        for conv in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, conv).weight, a=1)

    def forward(
        self, x: Tensor, review: Tensor | None, shape: int, out_shape: int
    ) -> tuple[Tensor, Tensor]:
        """The map for the teacher's stage, of size ``out_shape``, and the review to pass on.

        Args:
            x: student map [B, in_channel, H, W].
            review: what the deeper stage passed on; None for the deepest.
            shape: the height and width of ``x``.
        """
        x = self.conv1(x)
        if self.att_conv is not None and review is not None:
            review = _resize(review, shape)
            share = self.att_conv(torch.cat([x, review], dim=1))
            x = x * share[:, :1] + review * share[:, 1:]
        resized = x if x.shape[-1] == out_shape else _resize(x, out_shape)
        return self.conv2(resized), x


# How the stages look; what is left at its default is read off the networks.
_LAYOUT = {
    "SHAPES": Setting([1, 8, 16, 32], doc="sizes of the student's maps, deepest first"),
    "OUT_SHAPES": Setting([1, 8, 16, 32], doc="sizes of the teacher's maps, deepest first"),
    "IN_CHANNELS": Setting([64, 128, 256, 256], doc="of the student's maps, shallowest first"),
    "OUT_CHANNELS": Setting([64, 128, 256, 256], doc="of the teacher's maps, shallowest first"),
}


@distiller_dict.register("REVIEWKD")
class ReviewKD(Distiller):
    """Knowledge review, with the settings of ``cfg.REVIEWKD``; needs ``epoch``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`hcl_loss`
    times a factor that rises from 1 / WARMUP_EPOCHS to 1 in the first WARMUP_EPOCHS epochs. The
    fusion modules ``abfs`` (deepest stage first) are trained too.

    SHAPES and OUT_SHAPES (student's and teacher's map sizes, deepest first), IN_CHANNELS and
    OUT_CHANNELS (shallowest first) describe the stages, the pooled feature being the deepest.
    Each that is left at its default is read off the networks, which are paired from the deepest
    stage on.

    Raises:
        ConfigError: a network lacks the features before activation that it is asked for, or the
            four lists do not fit together.
    """

    family, needs, year = "features", "maps, fusion modules", 2021
    settings = {
        "CE_WEIGHT": Setting(1.0, doc="weight of the cross-entropy"),
        "REVIEWKD_WEIGHT": Setting(1.0, doc="weight of the distillation loss"),
        "WARMUP_EPOCHS": Setting(20, doc="epochs over which the distillation loss is faded in"),
        **_LAYOUT,
        "MAX_MID_CHANNEL": Setting(512, doc="has no effect, as in mdistiller"),
        "STU_PREACT": Setting(False, doc="the student's maps before the activation"),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.REVIEWKD.CE_WEIGHT
        self.reviewkd_loss_weight = cfg.REVIEWKD.REVIEWKD_WEIGHT
        self.warmup_epochs = cfg.REVIEWKD.WARMUP_EPOCHS
        self.stu_preact = cfg.REVIEWKD.STU_PREACT
        layout = self._layout(cfg)
        self.shapes, self.out_shapes = layout["SHAPES"], layout["OUT_SHAPES"]
        in_channels, out_channels = layout["IN_CHANNELS"], layout["OUT_CHANNELS"]
        # Not REVIEWKD.MAX_MID_CHANNEL, which mdistiller accepts and ignores.
        mid_channel = min(_MID_CHANNEL, in_channels[-1])
        abfs = [
            ABF(c_in, mid_channel, c_out, fuse=i < len(in_channels) - 1)
            for i, (c_in, c_out) in enumerate(zip(in_channels, out_channels, strict=True))
        ]
        self.abfs = nn.ModuleList(abfs[::-1])

    def _layout(self, cfg) -> dict[str, list[int]]:
        """The four lists, as configured or else inferred."""
        given = {key: list(cfg.REVIEWKD[key]) for key in _LAYOUT}
        inferred = [key for key in _LAYOUT if given[key] == _LAYOUT[key].default]
        if inferred:
            size = (image_size(cfg.DATASET.TYPE, cfg.DATASET.IMAGE_SIZE),) * 2
            maps_s = self._student_maps(probe(self.student, size))
            maps_t = self._teacher_maps(probe(self.own_teacher, size))
            explicit = [len(given[key]) for key in _LAYOUT if key not in inferred]
            n = min([len(maps_s), len(maps_t), *explicit])
            read = {
                "SHAPES": [f.shape[2] for f in maps_s[: -n - 1 : -1]],
                "OUT_SHAPES": [f.shape[2] for f in maps_t[: -n - 1 : -1]],
                "IN_CHANNELS": [f.shape[1] for f in maps_s[-n:]],
                "OUT_CHANNELS": [f.shape[1] for f in maps_t[-n:]],
            }
            given.update({key: read[key] for key in inferred})
        lengths = {key: len(values) for key, values in given.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ConfigError(f"REVIEWKD: these lists must have one entry per stage: {lengths}")
        return given

    def _student_maps(self, features: dict[str, Any]) -> list[Tensor]:
        key = "preact_feats" if self.stu_preact else "feats"
        maps = need_feature(features, key, self.student, "REVIEWKD")
        return [*maps, self._pooled_map(features, self.student)]

    def _teacher_maps(self, features: dict[str, Any]) -> list[Tensor]:
        maps = need_feature(features, "preact_feats", self.own_teacher, "REVIEWKD")
        return [*maps[1:], self._pooled_map(features, self.own_teacher)]

    @staticmethod
    def _pooled_map(features: dict[str, Any], network: nn.Module) -> Tensor:
        return as_map(need_feature(features, "pooled_feat", network, "REVIEWKD"))

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.abfs.parameters())

    def get_extra_parameters(self) -> int:
        return count(self.abfs.parameters())

    def review(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps to compare with the teacher's, shallowest first, from the student's likewise."""
        results: list[Tensor] = []
        passed_on = None
        stages = zip(self.abfs, reversed(maps), self.shapes, self.out_shapes, strict=False)
        for abf, x, shape, out_shape in stages:
            result, passed_on = abf(x, passed_on, shape, out_shape)
            results.insert(0, result)
        return results

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        factor = warmup_factor(need_argument(kwargs, "epoch", "REVIEWKD"), self.warmup_epochs)
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        reviewed = self.review(self._student_maps(feature_s))
        maps_t = self._teacher_maps(feature_t)[-len(reviewed) :]
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.reviewkd_loss_weight * factor * hcl_loss(reviewed, maps_t),
        }
        return logits, losses
