"""Loss weighting as mathematics on small tensors; knows neither models nor training."""

from .crossbatch import CrossBatchWeighting, CrossBatchWeights
from .gramian import combine, gramian
from .readings import READINGS

__all__ = ["READINGS", "CrossBatchWeighting", "CrossBatchWeights", "combine", "gramian"]
