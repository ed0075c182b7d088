"""Supervised training, with which distillation is compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mdistiller.config import Config

from ._base import Distiller
from ._registry import distiller_dict


@distiller_dict.register("NONE")
class Vanilla(Distiller):
    """Plain supervised training without a teacher; its one loss is called ``ce``."""

    supervised_losses = ("ce",)
    distillation_losses = ()

    def __init__(self, student: nn.Module, teacher: None = None, cfg: Config | None = None) -> None:
        super().__init__(student, None, cfg)

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"ce": self.cross_entropy(logits, target)}
