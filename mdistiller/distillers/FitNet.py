"""FitNets: Hints for Thin Deep Nets (Romero et al., arXiv:1412.6550)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting, not_negative
from mdistiller.errors import ConfigError
from mdistiller.models import name_of

from ._base import Distiller
from ._common import ConvReg, count, get_feat_shapes, loss_weights
from ._registry import distiller_dict


@distiller_dict.register("FITNET")
class FitNet(Distiller):
    """Hint learning, jointly with the task, with the settings of ``cfg.FITNET``.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``: mean squared
    difference between the teacher's map HINT_LAYER (0 is the stem) and the student's, turned
    into its shape by the regressor ``conv_reg``, which is trained too.

    Raises:
        ConfigError: a network has no such layer, or no regressor fits the two maps.
    """

    family, needs, year = "features", "maps, a regressor", 2015
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=100.0),
        "HINT_LAYER": Setting(2, not_negative, "which of the feature maps, from 0"),
        "INPUT_SIZE": Setting((32, 32), doc="height and width of the images"),
    }

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.FITNET.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.FITNET.LOSS.FEAT_WEIGHT
        self.hint_layer = cfg.FITNET.HINT_LAYER
        shapes_s, shapes_t = get_feat_shapes(student, teacher, cfg.FITNET.INPUT_SIZE)
        for network, shapes in ((student, shapes_s), (teacher, shapes_t)):
            if not 0 <= self.hint_layer < len(shapes):
                raise ConfigError(
                    f"FITNET.HINT_LAYER {self.hint_layer} is not a layer of "
                    f"{name_of(network)}; it has 0 to {len(shapes) - 1}"
                )
        self.conv_reg = ConvReg(shapes_s[self.hint_layer], shapes_t[self.hint_layer])

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + list(self.conv_reg.parameters())

    def get_extra_parameters(self) -> int:
        return count(self.conv_reg.parameters())

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        hint = self.conv_reg(feature_s["feats"][self.hint_layer])
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * F.mse_loss(hint, feature_t["feats"][self.hint_layer]),
        }
        return logits, losses
