"""GradNorm (Chen et al., arXiv:1711.02257): weights that equalise the training rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Least weight before the weights are normalised: a step of gradient descent may cross zero.
_FLOOR = 1e-3
# Least relative loss: a loss that starts at, or falls to, zero or below has no training rate.
_TINY = 1e-6


def gradnorm_targets(weighted_norms: Tensor, ratios: Tensor, alpha: float) -> Tensor:
    """The gradient norms to aim at, Gbar r_i^alpha (section 3.1 of the paper).

    Args:
        weighted_norms: [n], G_i = w_i |g_i|; Gbar is their mean.
        ratios: [n], L_i(t) / L_i(0) > 0; r_i is the ratio divided by the mean ratio.
        alpha: strength of the pull towards equal training rates, >= 0.

    Returns:
        [n], constants of the optimisation of the weights.
    """
    return weighted_norms.mean() * (ratios / ratios.mean()) ** alpha


def gradnorm_gradient(weights: Tensor, norms: Tensor, ratios: Tensor, alpha: float) -> Tensor:
    """Gradient of L_grad = sum_i |G_i - target_i| with respect to the weights, targets fixed.

    Args:
        weights: [n].
        norms: [n], |g_i| of the unweighted losses.
        ratios, alpha: see :func:`gradnorm_targets`.

    Returns:
        [n]; |g_i| where the weighted norm is above its target, -|g_i| below, 0 at it.
    """
    weighted = weights * norms
    return norms * torch.sign(weighted - gradnorm_targets(weighted, ratios, alpha))


def normalised(weights: Tensor) -> Tensor:
    """Weights [n], raised to a small positive bound and scaled so that they sum to n."""
    raised = weights.clamp_min(_FLOOR)
    return raised * (len(weights) / raised.sum())


class GradNormWeighting:
    """The weights of GradNorm (Algorithm 1) over a training; they sum to the number of losses.

    Args:
        alpha: see :func:`gradnorm_targets`.
        lr: learning rate > 0 of the weights, by plain gradient descent.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        if not alpha >= 0:
            raise ValueError(f"alpha must be 0 or greater, not {alpha}")
        if not lr > 0:
            raise ValueError(f"lr must be greater than 0, not {lr}")
        self.alpha = alpha
        self.lr = lr
        self._weights: Tensor | None = None
        self._initial: Tensor | None = None

    @torch.no_grad()
    def __call__(self, norms: Tensor, losses: Tensor) -> Tensor:
        """The weights of this step; those of the next one are then learned from it.

        Args:
            norms: [n], norms of the unweighted losses' gradients.
            losses: [n], the losses; those of the first call are L_i(0).

        Returns:
            [n], in the dtype of ``norms``; 1 at the first call. No host synchronisation.
        """
        losses = losses.to(norms)
        if self._weights is None or self._initial is None:
            self._weights, self._initial = torch.ones_like(norms), losses.clone()
        weights, initial = self._weights, self._initial
        ratios = torch.where(initial > 0, losses / initial, torch.ones_like(losses))
        gradient = gradnorm_gradient(weights, norms, ratios.clamp_min(_TINY), self.alpha)
        self._weights = normalised(weights - self.lr * gradient)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Weights of the next step and the initial losses; for a checkpoint."""
        return {"weights": self._weights, "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._weights = state["weights"]
        self._initial = state["initial"]
