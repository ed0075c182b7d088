"""The shipped methods with cross-batch weighting, registered as CROSSBATCH_<NAME>.

In every one the supervised loss is the method's weighted cross-entropy ("loss_ce") and the
distillation loss everything else it returns ("loss_kd"), loss weights and warm-up factors
included: they scale the distillation gradient's length, hence the mean g0 of Eq. 10, but not
the direction of the correction. The plain class's docstring says what its loss_kd sums up.
"""

from __future__ import annotations

from . import distiller_dict
from .AT import AT
from .CRD import CRD
from .crossbatch import CrossBatchDistiller
from .DKD import DKD
from .FitNet import FitNet
from .KD import KD
from .KDSVD import KDSVD
from .NST import NST
from .OFD import OFD
from .PKT import PKT
from .ReviewKD import ReviewKD
from .RKD import RKD
from .SP import SP
from .VID import VID


@distiller_dict.register("CROSSBATCH_KD")
class CrossBatchKD(CrossBatchDistiller, KD):
    """KD; distillation: the KL divergence of softened predictions."""


@distiller_dict.register("CROSSBATCH_RKD")
class CrossBatchRKD(CrossBatchDistiller, RKD):
    """RKD; distillation: distance plus angle loss of the pooled features."""


@distiller_dict.register("CROSSBATCH_AT")
class CrossBatchAT(CrossBatchDistiller, AT):
    """AT; distillation: the attention losses of all stages."""


@distiller_dict.register("CROSSBATCH_KDSVD")
class CrossBatchKDSVD(CrossBatchDistiller, KDSVD):
    """KDSVD; distillation: the losses of all neighbouring pairs of stages."""


@distiller_dict.register("CROSSBATCH_PKT")
class CrossBatchPKT(CrossBatchDistiller, PKT):
    """PKT; distillation: the divergence of the feature similarities."""


@distiller_dict.register("CROSSBATCH_FITNET")
class CrossBatchFitNet(CrossBatchDistiller, FitNet):
    """FitNet; distillation: the hint loss. Its regressor gets that loss's plain gradient."""


@distiller_dict.register("CROSSBATCH_OFD")
class CrossBatchOFD(CrossBatchDistiller, OFD):
    """OFD; distillation: all stages' losses. Its connectors get their plain gradient."""


@distiller_dict.register("CROSSBATCH_CRD")
class CrossBatchCRD(CrossBatchDistiller, CRD):
    """CRD; distillation: both contrastive terms. Its embeddings get their plain gradient.

    The auxiliary batch is only classified: the memory bank moves once a step, as in CRD.
    """


@distiller_dict.register("CROSSBATCH_NST")
class CrossBatchNST(CrossBatchDistiller, NST):
    """NST; distillation: the losses of all stages."""


@distiller_dict.register("CROSSBATCH_SP")
class CrossBatchSP(CrossBatchDistiller, SP):
    """SP; distillation: the similarity loss of the last stage."""


@distiller_dict.register("CROSSBATCH_VID")
class CrossBatchVID(CrossBatchDistiller, VID):
    """VID; distillation: all stages' losses. Its regressors get their plain gradient."""


@distiller_dict.register("CROSSBATCH_REVIEWKD")
class CrossBatchReviewKD(CrossBatchDistiller, ReviewKD):
    """ReviewKD; distillation: the hierarchical context loss times its warm-up factor.

    Its fusion modules get that loss's plain gradient, warm-up factor included.
    """


@distiller_dict.register("CROSSBATCH_DKD")
class CrossBatchDKD(CrossBatchDistiller, DKD):
    """DKD; distillation: target-class plus non-target-class loss, times the warm-up factor."""
