"""What a distiller needs beside its losses to be trained with cross-batch weighting."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.weighting import frozen_statistics

from ._base import Distiller


def reference_loss(student: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Plain cross-entropy of ``student`` on the auxiliary batch, without a loss weight.

    BatchNorm normalises by the auxiliary batch's statistics, as it would in training, but
    neither its running statistics nor any other buffer changes.

    Args:
        image: [B, 3, H, W].
        target: class labels [B].

    Returns:
        Scalar, with a graph to the student's parameters.
    """
    with frozen_statistics(student):
        logits, _ = student(image)
    return F.cross_entropy(logits, target)


class CrossBatchDistiller(Distiller):
    """A two-loss distiller with a reference loss of its own: the class of CROSSBATCH_<NAME>.

    Registering a distiller as NAME makes this form of it. Write one by hand to override
    :meth:`reference_loss`; put this class before the distiller in the bases:

    >>> from mdistiller.distillers import KD, CrossBatchDistiller, distiller_dict
    >>> @distiller_dict.register("CROSSBATCH_MINE")
    ... class CrossBatchMine(CrossBatchDistiller, KD):
    ...     pass

    The ``crossbatch`` trainer then weights the gradient of the sum of
    :attr:`supervised_losses` against that of the sum of :attr:`distillation_losses` (both
    class attributes, ("loss_ce",) and ("loss_kd",) unless overridden), loss weights and warm-up
    factors included, with the gradient of :meth:`reference_loss` as reference (docs/method.md,
    section 1). Modules of the method's own (regressors, embeddings) get the plain gradient.
    """

    def reference_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """:func:`reference_loss` of the student; scalar."""
        return reference_loss(self.student, image, target)
