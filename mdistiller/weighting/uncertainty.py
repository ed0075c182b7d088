"""Uncertainty weighting (Kendall et al., CVPR 2018, arXiv:1705.07115).

Each loss L_i has a learned log variance s_i = log sigma_i^2, and what is minimised is
sum_i exp(-s_i) L_i + s_i / 2, the paper's form for classification (Eq. 10). For a constant
loss L > 0 the minimum is at exp(-s) = 1 / (2 L).
"""

from __future__ import annotations

from torch import Tensor


def uncertainty_weights(log_variances: Tensor) -> Tensor:
    """Weights exp(-s_i) of the losses; ``log_variances`` [n], 1 at 0."""
    return (-log_variances).exp()


def uncertainty_gradient(log_variances: Tensor, losses: Tensor) -> Tensor:
    """Gradient of sum_i exp(-s_i) L_i + s_i / 2 with respect to the log variances.

    Args:
        log_variances: [n].
        losses: [n], constants.

    Returns:
        [n], in the dtype of ``log_variances``.
    """
    return 0.5 - uncertainty_weights(log_variances) * losses.to(log_variances)
