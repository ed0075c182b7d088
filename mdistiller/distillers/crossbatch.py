"""The form of a distiller that is made to be trained with cross-batch weighting."""

from __future__ import annotations

from ._base import Distiller


class CrossBatchDistiller(Distiller):
    """A two-loss distiller for the ``crossbatch`` trainer: the class of CROSSBATCH_<NAME>.

    Registering a distiller as NAME makes this form of it. Write one by hand to override
    :meth:`reference_loss`; put this class before the distiller in the bases:

    Examples:
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
