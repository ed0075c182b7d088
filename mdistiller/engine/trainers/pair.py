"""The step of the trainers that look at both losses' gradients before they weight them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.engine.runtime.distributed import World
from mdistiller.weighting import (
    GradNormWeighting,
    combine,
    cosine_gate,
    gramian,
    pair_statistics,
)

from .base import BaseTrainer
from .gradients import GradientRows
from .registry import trainer_dict

# Rows of the stacked gradients.
CE, KD = 0, 1


class PairTrainer(BaseTrainer):
    """Takes the gradients of the supervised and the distillation loss and combines them.

    A subclass implements :meth:`combine`. theta are the student's parameters; all other
    learnable parameters receive the plain gradient of the unweighted losses, as with
    cross-batch weighting (docs/weightings.md). "Unweighted" losses are the distiller's two
    losses, configured loss weights included.
    """

    needs_distillation_loss = True
    data_parallel = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gradients = GradientRows(self.distiller, 2)

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The weights [2] of the two gradients, and the update [P] if it is no weighted sum.

        Args:
            products: [2, 2], the Gramian of the gradients.
            statistics: :func:`mdistiller.weighting.pair_statistics` of it.
            losses: [2], values of the two losses.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement combine")

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        pair = self.distiller.split_losses(losses)
        supervised, distillation = (loss * batch.fraction for loss in pair)
        self._gradients.write(CE, supervised, retain_graph=True)
        self._gradients.write(KD, distillation)
        if self.world.size > 1:
            self._gradients.reduce(self.world, 2)
        products = gramian(self._gradients.buffer)
        statistics = pair_statistics(products)
        values = loss_values(self.world, supervised, distillation)
        weights, update = self.combine(products, statistics, values)
        if update is None:
            update = combine(self._gradients.buffer, weights)
        self._gradients.apply(update, (CE, KD))
        gradients = {
            "gradient of the supervised loss": statistics["norm_ce"],
            "gradient of the distillation loss": statistics["norm_kd"],
            "weight of the supervised loss": weights[CE],
            "weight of the distillation loss": weights[KD],
        }
        diagnostics = {"ce": weights[CE], "kd": weights[KD], **statistics}
        return StepResult(logits, losses, diagnostics, gradients, (weights[CE], weights[KD]))


def loss_values(world: World, supervised: Tensor, distillation: Tensor) -> Tensor:
    """Values [2] of the two losses on the whole batch, without their graphs.

    Args:
        supervised, distillation: of this process, scaled by its fraction of the batch.
    """
    values = torch.stack([supervised.detach(), distillation.detach()])
    world.sum_([values])
    return values


@trainer_dict.register("gradnorm")
class GradNormTrainer(PairTrainer):
    """GradNorm (arXiv:1711.02257): learns weights that sum to 2 and equalise training rates.

    The gradient norms are those of all of the student's parameters.
    """

    settings = {
        "ALPHA": Setting(1.5, not_negative, "strength with which training rates are equalised"),
        "LR": Setting(0.025, positive, "learning rate of the weights"),
    }
    diagnostics_name = "gradnorm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        node = self.cfg.GRADNORM
        self.weighting = GradNormWeighting(alpha=node.ALPHA, lr=node.LR)

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, None]:
        norms = torch.stack([statistics["norm_ce"], statistics["norm_kd"]])
        return self.weighting(norms, losses), None

    def extra_state(self) -> dict[str, Any]:
        return self.weighting.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.weighting.load_state_dict(state)


@trainer_dict.register("gradient_cosine")
class GradientCosineTrainer(PairTrainer):
    """Uses the distillation gradient only where its cosine with the CE gradient is positive.

    Both gradients are of the same batch (arXiv:1812.02224): the ablation without a second one.
    """

    settings = {
        "WEIGHTED": Setting(False, doc="multiply by the cosine instead of by 1"),
    }
    diagnostics_name = "gradient_cosine"

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, None]:
        return cosine_gate(products, self.cfg.GRADIENT_COSINE.WEIGHTED), None
