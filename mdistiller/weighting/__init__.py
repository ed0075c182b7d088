"""Loss weighting: mathematics on small tensors, and one call for anybody's training loop.

Examples:
    >>> import torch
    >>> from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward
    >>> student, weighting = torch.nn.Linear(2, 3), CrossBatchWeighting()
    >>> first, second, label = torch.ones(1, 2), torch.eye(2), torch.tensor([0, 1])
    >>> ce = torch.nn.functional.cross_entropy(student(first), label[:1])
    >>> kd = student(first).square().mean()
    >>> unseen = torch.nn.functional.cross_entropy(student(second), label)
    >>> weights = cross_batch_backward(
    ...     {"ce": ce, "kd": kd}, reference=unseen, inputs=student.parameters(), weighting=weighting
    ... )
"""

from .aggregators import PairAggregator
from .backward import cross_batch_backward
from .crossbatch import STEPS, THETAS, CrossBatchWeighting
from .decay import DecaySchedule
from .frozen import frozen_statistics
from .gradnorm import GradNormWeighting, gradnorm_gradient, gradnorm_targets
from .gramian import combine, combined_norms, gramian
from .pair import cosine_gate, pair_statistics
from .readings import READINGS
from .uncertainty import uncertainty_gradient, uncertainty_weights
from .weights import CrossBatchWeights

__all__ = [
    "READINGS",
    "STEPS",
    "THETAS",
    "CrossBatchWeighting",
    "CrossBatchWeights",
    "DecaySchedule",
    "GradNormWeighting",
    "PairAggregator",
    "combine",
    "combined_norms",
    "cosine_gate",
    "cross_batch_backward",
    "frozen_statistics",
    "gradnorm_gradient",
    "gradnorm_targets",
    "gramian",
    "pair_statistics",
    "uncertainty_gradient",
    "uncertainty_weights",
]
