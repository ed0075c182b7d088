"""Loss weighting as mathematics on small tensors; knows neither models nor training."""

from .aggregators import PairAggregator
from .crossbatch import STEPS, CrossBatchWeighting
from .decay import DecaySchedule
from .gradnorm import GradNormWeighting, gradnorm_gradient, gradnorm_targets
from .gramian import combine, combined_norms, gramian
from .pair import cosine_gate, pair_statistics
from .readings import READINGS
from .uncertainty import uncertainty_gradient, uncertainty_weights
from .weights import CrossBatchWeights

__all__ = [
    "READINGS",
    "STEPS",
    "CrossBatchWeighting",
    "CrossBatchWeights",
    "DecaySchedule",
    "GradNormWeighting",
    "PairAggregator",
    "combine",
    "combined_norms",
    "cosine_gate",
    "gradnorm_gradient",
    "gradnorm_targets",
    "gramian",
    "pair_statistics",
    "uncertainty_gradient",
    "uncertainty_weights",
]
