"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., arXiv:2203.14001)."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, at_least_one, not_negative
from mdistiller.dataset import image_size
from mdistiller.models._common import average_pool
from mdistiller.models.heads import ReusedClassifier, head_of, last_map, make_projector

from ._base import Distiller
from ._common import check_last_map, count
from ._registry import distiller_dict


def simkd_loss(projected: Tensor, map_teacher: Tensor) -> Tensor:
    """Mean squared difference of the projected student map and the teacher's.

    Args:
        projected, map_teacher: [B, C, H, W] and [B, C, H', W'], rectified; the teacher's is
            pooled where it is larger.

    Returns:
        Scalar, the mean over all entries.
    """
    height, width = projected.shape[2:]
    return F.mse_loss(projected, average_pool(map_teacher, height, width))


@distiller_dict.register("SIMKD")
class SimKD(Distiller):
    """A student that ends in the teacher's classifier, with the settings of ``cfg.SIMKD``.

    :attr:`student` becomes a :class:`~mdistiller.models.heads.ReusedClassifier`: the student's
    layers without its classifier, a projector, and a frozen copy of the teacher's classifier.
    That network is validated, saved, exported and counted. Supervised loss ``loss_ce``:
    cross-entropy, with the weight 0 unless set. Distillation loss ``loss_kd``:
    :func:`simkd_loss`.

    Raises:
        ConfigError: a network does not return the map that its classifier pools.
    """

    family, needs, year = "features", "maps, a projector, the teacher's classifier", 2022
    settings = {
        "CE_WEIGHT": Setting(
            0.0, not_negative, "weight of the cross-entropy; cross-batch weighting needs one"
        ),
        "FEAT_WEIGHT": Setting(1.0, not_negative, "weight of the distillation loss"),
        "FACTOR": Setting(2, at_least_one, "by which the projector is narrower inside"),
    }

    @classmethod
    def check(cls, cfg) -> None:
        super().check(cfg)
        if cfg.SOLVER.TRAINER == "crossbatch" and cfg.SIMKD.CE_WEIGHT == 0:
            warnings.warn(
                "SIMKD.CE_WEIGHT 0 leaves no supervised gradient that SOLVER.TRAINER crossbatch "
                "could weigh; set it, for example to 1",
                stacklevel=2,
            )

    def __init__(self, student, teacher, cfg) -> None:
        node = cfg.SIMKD
        size = [image_size(cfg.DATASET.TYPE, cfg.DATASET.IMAGE_SIZE)] * 2
        maps = [check_last_map(network, size, "SIMKD") for network in (student, teacher)]
        (_, c_s, *_), (_, c_t, height, width) = (m.shape for m in maps)
        projector = make_projector(c_s, c_t, node.FACTOR)
        reused = ReusedClassifier(student, projector, head_of(teacher), (height, width))
        super().__init__(reused.train(student.training), teacher, cfg)
        self.ce_loss_weight = node.CE_WEIGHT
        self.feat_loss_weight = node.FEAT_WEIGHT

    def get_learnable_parameters(self):
        return [p for p in self.student.parameters() if p.requires_grad]

    def get_extra_parameters(self):
        return count(self.student.projector.parameters())

    def forward_train(self, image, target, **kwargs):
        logits, features = self.student(image)
        _, feature_t = self.forward_teacher(image)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * simkd_loss(features["projected"], last_map(feature_t)),
        }
        return logits, losses
