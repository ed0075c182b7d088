"""What a distiller needs beside its losses to be trained with cross-batch weighting."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._base import Distiller
from ._frozen import frozen_buffers


class CrossBatchDistiller(Distiller):
    """Mixin that makes any two-loss distiller a cross-batch one.

    Put it before the distiller in the bases, and register the class:

    >>> from mdistiller.distillers import KD, CrossBatchDistiller, distiller_dict
    >>> @distiller_dict.register("CROSSBATCH_MINE")
    ... class CrossBatchMine(CrossBatchDistiller, KD):
    ...     pass

    The ``crossbatch`` trainer then weights the gradient of the sum of
    :attr:`supervised_losses` against that of the sum of :attr:`distillation_losses` (both
    class attributes, ("loss_ce",) and ("loss_kd",) unless overridden), with the gradient of
    :meth:`reference_loss` as reference (docs/method.md, section 1).
    """

    def reference_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """Plain cross-entropy of the student on the auxiliary batch, without a loss weight.

        BatchNorm normalises by the auxiliary batch's statistics, as it would in training,
        but neither its running statistics nor any other buffer changes.

        Args:
            image: [B, 3, H, W].
            target: class labels [B].

        Returns:
            Scalar, with a graph to the student's parameters.
        """
        with frozen_buffers(self.student):
            logits, _ = self.student(image)
        return F.cross_entropy(logits, target)
