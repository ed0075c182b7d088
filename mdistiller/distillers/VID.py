"""Variational Information Distillation for Knowledge Transfer (Ahn et al., arXiv:1904.05835)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting
from mdistiller.errors import ConfigError

from ._base import Distiller
from ._common import Constants, count, get_feat_shapes, loss_weights, match_size
from ._registry import distiller_dict


def vid_loss(regressor: nn.Module, log_scale: Tensor, f_s: Tensor, f_t: Tensor, eps: float):
    """Negative log-likelihood (without its constant) of the teacher's map under a Gaussian.

    Args:
        regressor: turns the student's map into the Gaussian's mean.
        log_scale: [C_t]; the variance of each channel is softplus(log_scale) + eps.
        f_s, f_t: maps [B, C_s, H, W] and [B, C_t, H, W]; the larger is pooled.
        eps: least variance.

    Returns:
        Scalar, the mean over all entries of the map.
    """
    f_s, f_t = match_size(f_s, f_t)
    variance = (F.softplus(log_scale) + eps)[:, None, None]
    return 0.5 * ((regressor(f_s) - f_t).pow(2) / variance + variance.log()).mean()


def _regressor(c_in: int, c_out: int) -> nn.Sequential:
    def conv1x1(c: int) -> nn.Conv2d:
        return nn.Conv2d(c, c_out, kernel_size=1, bias=False)

    return nn.Sequential(conv1x1(c_in), nn.ReLU(), conv1x1(c_out), nn.ReLU(), conv1x1(c_out))


@distiller_dict.register("VID")
class VID(Distiller):
    """Variational information distillation, with the settings of ``cfg.VID``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: :func:`vid_loss`
    of the maps after the stem, summed over the stages that both networks have, with one
    regressor each. The variances are constants, as in mdistiller; with
    ``cfg.VID.LEARN_VARIANCE`` they are trained and saved, as in the paper.
    """

    family, needs, year = "features", "maps, regressors", 2019
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0),
        "EPS": Setting(1e-5, doc="added to the predicted variances"),
        "INIT_PRED_VAR": Setting(5.0, doc="variance at the start"),
        "INPUT_SIZE": Setting((32, 32), doc="height and width of the images"),
        "LEARN_VARIANCE": Setting(
            False, doc="train the variances, as in the paper, see [differences](differences.md)"
        ),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.VID.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.VID.LOSS.FEAT_WEIGHT
        self.eps = cfg.VID.EPS
        self.learn_variance = cfg.VID.LEARN_VARIANCE
        shapes_s, shapes_t = get_feat_shapes(student, teacher, cfg.VID.INPUT_SIZE)
        channels = [(s[1], t[1]) for s, t in zip(shapes_s[1:], shapes_t[1:], strict=False)]
        self.regressors = nn.ModuleList(_regressor(c_s, c_t) for c_s, c_t in channels)
        scale = self._initial_log_scale(cfg.VID.INIT_PRED_VAR)
        scales = [torch.full((c_t,), scale) for _, c_t in channels]
        self.log_scales = nn.ParameterList(scales) if self.learn_variance else Constants(scales)

    def _initial_log_scale(self, variance: float) -> float:
        if variance <= self.eps:
            raise ConfigError(
                f"VID.INIT_PRED_VAR {variance} must be greater than VID.EPS {self.eps}"
            )
        x = variance - self.eps
        return x + math.log(-math.expm1(-x))  # inverse of softplus, for large x too

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + self._own_parameters()

    def get_extra_parameters(self) -> int:
        return count(self._own_parameters())

    def _own_parameters(self) -> list[nn.Parameter]:
        return [*self.regressors.parameters(), *self.log_scales.parameters()]

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        stages = zip(
            self.regressors,
            self.log_scales,
            feature_s["feats"][1:],
            feature_t["feats"][1:],
            strict=False,
        )
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight * sum(vid_loss(*stage, self.eps) for stage in stages),
        }
        return logits, losses
