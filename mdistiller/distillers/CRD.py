"""Contrastive Representation Distillation (Tian et al., arXiv:1910.10699)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Setting, at_least_one, below_one, one_of, positive
from mdistiller.errors import ConfigError
from mdistiller.models import name_of

from ._base import Distiller
from ._common import count, loss_weights, need_argument
from ._registry import distiller_dict

_EPS = 1e-7


class Embed(nn.Module):
    """Linear map of features [B, D] to vectors [B, d] of unit length."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x))


class ContrastMemory(nn.Module):
    """Running embeddings of all training samples, of the student (v1) and the teacher (v2).

    Buffers: ``memory_v1``, ``memory_v2`` [num_data, dim] and ``params``: number of negatives,
    temperature, the two normalising constants (-1 until the first batch sets them), momentum.
    """

    params: Tensor
    memory_v1: Tensor
    memory_v2: Tensor

    def __init__(
        self, dim: int, num_data: int, k: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        bound = math.sqrt(3 / dim)
        self.register_buffer("params", torch.tensor([k, temperature, -1, -1, momentum]))
        self.register_buffer("memory_v1", torch.empty(num_data, dim).uniform_(-bound, bound))
        self.register_buffer("memory_v2", torch.empty(num_data, dim).uniform_(-bound, bound))

    def forward(
        self, v1: Tensor, v2: Tensor, index: Tensor, contrastive_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalised similarities [B, K + 1] of each embedding to the other network's memory.

        Args:
            v1, v2: embeddings [B, d] of the student and the teacher.
            index: positions [B] of the samples in the training set.
            contrastive_index: positions [B, K + 1] of the samples to compare with, the positive
                one first.
        """
        # A copy: the buffers change below, while the backward pass still needs these values.
        _, temperature, z_v1, z_v2, momentum = self.params.clone().unbind()
        out_v1 = self._similarity(v1, self.memory_v2, contrastive_index, temperature)
        out_v2 = self._similarity(v2, self.memory_v1, contrastive_index, temperature)
        with torch.no_grad():
            z_v1, z_v2 = (
                torch.where(z < 0, out.mean() * len(self.memory_v1), z)
                for z, out in ((z_v1, out_v1), (z_v2, out_v2))
            )
            self.params[2:4] = torch.stack([z_v1, z_v2])
            self._remember(self.memory_v1, v1, index, momentum)
            self._remember(self.memory_v2, v2, index, momentum)
        return out_v1 / z_v1, out_v2 / z_v2

    @staticmethod
    def _similarity(v: Tensor, memory: Tensor, index: Tensor, temperature: Tensor) -> Tensor:
        # Not memory[index]: index_select copies once, without a broadcast of the index.
        chosen = memory.index_select(0, index.flatten()).view(*index.shape, -1)
        return ((chosen @ v[:, :, None]).squeeze(2) / temperature).exp()

    @staticmethod
    def _remember(memory: Tensor, v: Tensor, index: Tensor, momentum: Tensor) -> None:
        mixed = momentum * memory[index] + (1 - momentum) * v
        memory.index_copy_(0, index, F.normalize(mixed).to(memory.dtype))


def contrast_loss(similarity: Tensor, num_data: int) -> Tensor:
    """Noise-contrastive estimation of which entry is the positive.

    Args:
        similarity: [B, K + 1], the positive first.
        num_data: size of the training set, from which the negatives were drawn evenly.

    Returns:
        Shape [1].
    """
    noise = (similarity.shape[1] - 1) / num_data
    positive, negatives = similarity[:, 0], similarity[:, 1:]
    log_positive = torch.log(positive / (positive + noise + _EPS))
    log_negative = torch.log(noise / (negatives + noise + _EPS))
    return -(log_positive.sum() + log_negative.sum()).reshape(1) / len(similarity)


@distiller_dict.register("CRD")
class CRD(Distiller):
    """Contrastive distillation, with the settings of ``cfg.CRD``.

    Needs ``index`` [B] and ``contrastive_index`` [B, K + 1] at every step. CRD.MODE is the
    sampler's affair: whether a positive is the sample itself ("exact") or one of its class.

    Supervised loss ``loss_ce``: cross-entropy. Distillation loss ``loss_kd``, of shape [1]: the
    sum of :func:`contrast_loss` for both networks' embeddings, which are trained too.

    Args:
        num_data: size of the training set.
    """

    family, needs, year = "relations", "pooled features, embeddings, a memory", 2020
    settings = {
        **loss_weights(CE_WEIGHT=1.0, FEAT_WEIGHT=0.8),
        "MODE": Setting(
            "exact",
            one_of("exact", "relax"),
            "the positive is the image itself, or (relax) a random one of its class",
        ),
        "FEAT.DIM": Setting(128, at_least_one, "length of the embeddings"),
        "FEAT.STUDENT_DIM": Setting(256, doc="length of the student's pooled feature"),
        "FEAT.TEACHER_DIM": Setting(256, doc="length of the teacher's pooled feature"),
        "NCE.K": Setting(16384, at_least_one, "negatives for each image"),
        "NCE.MOMENTUM": Setting(0.5, below_one, "of the memory bank"),
        "NCE.TEMPERATURE": Setting(0.07, positive, "divides the similarities"),
    }

    needs_contrast = True
    reads_cache = ("pooled_feat",)

    # The memory bank and its normalising constants would differ between processes.
    data_parallel = False

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Config, num_data: int) -> None:
        super().__init__(student, teacher, cfg)
        feat, nce = cfg.CRD.FEAT, cfg.CRD.NCE
        self.ce_loss_weight = cfg.CRD.LOSS.CE_WEIGHT
        self.feat_loss_weight = cfg.CRD.LOSS.FEAT_WEIGHT
        self.num_data = num_data
        self.embed_s = Embed(feat.STUDENT_DIM, feat.DIM)
        self.embed_t = Embed(feat.TEACHER_DIM, feat.DIM)
        self.contrast = ContrastMemory(feat.DIM, num_data, nce.K, nce.TEMPERATURE, nce.MOMENTUM)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return super().get_learnable_parameters() + self._own_parameters()

    def get_extra_parameters(self) -> int:
        return count([*self._own_parameters(), *self.contrast.buffers()])

    def _own_parameters(self) -> list[nn.Parameter]:
        return [*self.embed_s.parameters(), *self.embed_t.parameters()]

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        index = need_argument(kwargs, "index", "CRD")
        contrastive_index = need_argument(kwargs, "contrastive_index", "CRD")
        logits, feature_s = self.student(image)
        _, feature_t = self.forward_teacher(image)
        v_s = self._embed("STUDENT", self.embed_s, self.student, feature_s)
        v_t = self._embed("TEACHER", self.embed_t, self.own_teacher, feature_t)
        contrasts = self.contrast(v_s, v_t, index, contrastive_index)
        losses = {
            "loss_ce": self.ce_loss_weight * self.cross_entropy(logits, target),
            "loss_kd": self.feat_loss_weight
            * sum(contrast_loss(c, self.num_data) for c in contrasts),
        }
        return logits, losses

    def _embed(self, role: str, embed: Embed, network: nn.Module, features: dict) -> Tensor:
        pooled = features["pooled_feat"].flatten(1)
        if pooled.shape[1] != embed.linear.in_features:
            raise ConfigError(
                f"CRD.FEAT.{role}_DIM is {embed.linear.in_features}, but the pooled feature of "
                f"{name_of(network)} has {pooled.shape[1]} entries; set it to that"
            )
        return embed(pooled)
