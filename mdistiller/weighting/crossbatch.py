"""Cross-batch weighting: a pure function from the Gramian of three gradients to two weights.

Implements Eq. 4-11 of "Cross-Batch Gradient Consistency for Adaptive Loss Balancing in
Knowledge Distillation" and the readings of docs/method.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mdistiller.device import solve_dtype

from ._norms import Norms
from .readings import READINGS, inverse_above, orthogonal
from .weights import CrossBatchWeights

# |g_w| of unit gradients under which the combination counts as vanished: beyond, the
# rounding errors of single-precision gradients would be the update's direction.
_VANISHED = 1e-6

STEPS = ("paper", "plain", "supervised")
THETAS = ("student", "shared")

# The regression's average, where no other is asked for: single steps tell it nothing.
_REGRESSION_EMA = 0.99


class CrossBatchWeighting:
    """Weights A and B of the supervised and the distillation gradient.

    A pure function of the Gramian unless ``ema`` > 0. Closed form, on the Gramian's own device,
    without a host synchronisation or a Python branch on its values.

    Args:
        reading: "align" (nearest to the unit reference), "printed" (the paper's equations to
            the letter), "orthogonal" (Eq. 5-6 on the simplex), "cone" (largest cosine to
            the reference within the cone of the two gradients) or "regression" (best
            prediction of the reference from the two gradients, over many steps).
        alpha: strength of the correction in Eq. 10, >= 0; |g - g0| = alpha |g0|. Only with
            step "paper".
        ridge: weight >= 0 of |w - (1/2, 1/2)|^2 in the "orthogonal" reading.
        stabilize: apply Eq. 10-11; if False the update is g_w of Eq. 9 itself.
        prefer: "ce" or "kd", the loss whose final weight is 1 in Eq. 9. Has an effect
            only with ``stabilize=False``.
        max_ratio: upper bound > 0 of the other loss's final weight, with ``stabilize=False``.
        rescale: 0: as printed; 1: divide by 1 + alpha^2; 2: divide by 1 + alpha (CAGrad's
            options; only with ``stabilize=True``).
        ema: decay in [0, 1) of the moving average from which the quadratic program is solved:
            of the cosines, for "regression" of the Gramian; 0 solves it from the current step
            alone, but stands for 0.99 with "regression", which would be "cone" then.
        step: the update's length. "paper": Eq. 10-11, or Eq. 9 with ``stabilize=False``;
            "plain": along g_w alone, |g| = |g_ce + g_kd|; "supervised": along g_w alone,
            |g| = |g_ce| |u_ce + u_kd| with unit gradients u, whatever the length of g_kd.
        theta: whose gradients the Gramian is of, to be heeded by who computes it: "student": all
            parameters; "shared": those that both losses reach, while the others get the plain
            gradient of the loss that reaches them.

    Attributes:
        shared: with theta "shared", of each parameter whether both losses reach it, as found in
            the first step; None before. In the state dict.

    Raises:
        ValueError: an argument is outside its range, or does not go with another one.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> weights = CrossBatchWeighting(reading="align")(rows @ rows.T)
        >>> update = weights.ce * rows[0] + weights.kd * rows[1]
    """

    def __init__(
        self,
        reading: str = "align",
        alpha: float = 1.0,
        ridge: float = 0.0,
        stabilize: bool = True,
        prefer: str = "ce",
        max_ratio: float = 10.0,
        rescale: int = 0,
        ema: float = 0.0,
        step: str = "paper",
        theta: str = "student",
    ) -> None:
        _require("reading", reading, reading in READINGS, f"one of {', '.join(READINGS)}")
        _require("prefer", prefer, prefer in ("ce", "kd"), "ce or kd")
        _require("rescale", rescale, rescale in (0, 1, 2), "0, 1 or 2")
        _require("alpha", alpha, _is_number(alpha) and alpha >= 0, "a number >= 0")
        _require("ridge", ridge, _is_number(ridge) and ridge >= 0, "a number >= 0")
        _require("max_ratio", max_ratio, _is_number(max_ratio) and max_ratio > 0, "a number > 0")
        _require("ema", ema, _is_number(ema) and 0 <= ema < 1, "a number in [0, 1)")
        _require("step", step, step in STEPS, f"one of {', '.join(STEPS)}")
        _require("theta", theta, theta in THETAS, f"one of {', '.join(THETAS)}")
        if step != "paper" and (not stabilize or rescale):
            other = "rescale " + str(rescale) if rescale else "stabilize False"
            raise ValueError(
                f"step {step} sets the length of the update, and so does {other}; choose one"
            )
        self.reading = reading
        self.alpha = float(alpha)
        self.ridge = float(ridge)
        self.stabilize = bool(stabilize)
        self.prefer = prefer
        self.max_ratio = float(max_ratio)
        self.rescale = int(rescale)
        self.ema = float(ema)
        if reading == "regression" and not ema:
            self.ema = _REGRESSION_EMA
        self.step = step
        self.theta = theta
        self.shared: list[bool] | None = None
        self._average: Tensor | None = None
        self._steps = 0

    def __repr__(self) -> str:
        names = (n for n in vars(self) if not n.startswith("_") and n != "shared")
        return f"CrossBatchWeighting({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    def state_dict(self) -> dict[str, Any]:
        """The moving average, its age and the shared parameters; for a checkpoint."""
        return {"average": self._average, "steps": self._steps, "shared": self.shared}

    def reset(self) -> None:
        """Forget what earlier steps have left."""
        self._average, self._steps, self.shared = None, 0, None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; another reading's average is left out."""
        average = state["average"]
        # The regression's is of the Gramian, any other of the cosines.
        wanted = (3, 3) if self.reading == "regression" else (3,)
        if average is not None and average.shape != wanted:
            average = None
        self._average = average
        self._steps = 0 if average is None else state["steps"]
        # Checkpoints of earlier versions do not have it.
        self.shared = state.get("shared") if self.theta == "shared" else None

    def __call__(self, gramian: Tensor) -> CrossBatchWeights:
        """Solve one step.

        Args:
            gramian: [3, 3], inner products of (g_ce, g_kd, G), any float dtype and device;
                a zero third row and column stands for "no reference".

        Returns:
            The weights, in the Gramian's dtype (a narrow one's finite range is kept to).

        Raises:
            ValueError: ``gramian`` is not a floating-point 3 x 3 matrix.
        """
        if gramian.shape != (3, 3) or not gramian.is_floating_point():
            raise ValueError(
                "gramian must be a floating-point tensor of shape (3, 3), "
                f"not {gramian.dtype} {tuple(gramian.shape)}"
            )
        g = gramian.detach().to(solve_dtype(gramian.device))
        norms = Norms.of(g)
        w_ce = self._regression(norms, g) if self.reading == "regression" else self._solve(norms)
        w_kd = 1 - w_ce
        if self.step != "paper":
            solution = self._of_length
        else:
            solution = self._stabilized if self.stabilize else self._unstabilized
        ce, kd, lam = solution(norms, w_ce, w_kd)
        weights = CrossBatchWeights(
            ce=ce,
            kd=kd,
            w_ce=w_ce,
            w_kd=w_kd,
            c_ce=norms.c_ce,
            c_kd=norms.c_kd,
            c_12=norms.c_12,
            norm_ce=norms.ce,
            norm_kd=norms.kd,
            norm_ref=norms.ref,
            lam=lam,
            conflict=(norms.c_12 < 0).to(g.dtype),
        )
        return weights if gramian.dtype == g.dtype else weights.rounded_to(gramian.dtype)

    def _solve(self, norms: Norms) -> Tensor:
        """The quadratic program's weight of the supervised loss."""
        c_ce, c_kd, c_12 = norms.c_ce, norms.c_kd, norms.c_12
        if self.ema:
            c_ce, c_kd, c_12 = self._smoothed(torch.stack([c_ce, c_kd, c_12])).unbind()
        if self.reading == "printed":
            # Only reported: the raw problem of Eq. 6, u = (g_ce . G, g_kd . G), on the simplex.
            w_ce = orthogonal(norms.ce * c_ce, norms.kd * c_kd, c_12, 0.0)
        else:
            w_ce = READINGS[self.reading](c_ce, c_kd, c_12, self.ridge)
        return norms.without_zero_gradients(w_ce)

    def _regression(self, norms: Norms, g: Tensor) -> Tensor:
        """The share of this step's g_ce / |g_ce| in the direction that the average asks for."""
        average = self._smoothed(g)
        usual = Norms.of(average)
        t = READINGS["regression"](usual.c_ce, usual.c_kd, usual.c_12, self.ridge)
        # The weights are those of g_i / s_i, and |g_i| of this step is not s_i.
        ce, kd = (
            torch.stack([t, 1 - t]) * torch.stack([norms.ce, norms.kd]) * usual.inverse[:2]
        ).unbind()
        total = ce + kd
        share = (ce / total.masked_fill(total == 0, 1.0)).masked_fill(total == 0, 0.5)
        return norms.without_zero_gradients(share)

    def _smoothed(self, values: Tensor) -> Tensor:
        if not self.ema:
            return values
        if self._average is None:
            self._average = torch.zeros_like(values)
        # A step that overflowed, which a GradScaler is about to skip, leaves the average as it is.
        usual = self._average.to(values) / (1 - self.ema**self._steps) if self._steps else 0.0
        values = torch.where(values.isfinite().all(), values, usual)
        self._average = self._average.to(values) * self.ema + values * (1 - self.ema)
        self._steps += 1
        return self._average / (1 - self.ema**self._steps)

    def _direction(self, norms: Norms, w_ce: Tensor, w_kd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients [2] of g_ce and g_kd in g_w (up to scale), |g_w| at that scale, |2 g0|."""
        if self.reading == "printed":
            w_ce = norms.without_zero_gradients(
                READINGS["printed"](norms.c_ce, norms.c_kd, norms.c_12, 0.0)
            )
            w_kd = 1 - w_ce
        pairs = torch.stack([w_ce, w_kd, norms.ce, norms.kd]).view(2, 2)
        # |x u + y v|^2 of unit vectors u, v with cosine c, for both pairs at once; not as
        # x^2 + y^2 + 2 x y c, which cancels for opposite ones, and so that no term is negative.
        x, y = pairs.unbind(1)
        gap = x - y
        squared = torch.addcmul(gap * gap, x * y, 1 + norms.c_12, value=2)
        length, twice_g0 = squared.sqrt().unbind()
        return pairs[0] * norms.inverse[:2], length, twice_g0

    def _stabilized(
        self, norms: Norms, w_ce: Tensor, w_kd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 10-11: A, B and lambda."""
        direction, length, twice_g0 = self._direction(norms, w_ce, w_kd)
        correction = direction * (twice_g0 * (self.alpha / 2) * inverse_above(length, _VANISHED))
        # Eq. 9 makes the preferred loss's coefficient in g_w 1, so its share is lambda.
        lam = correction[0 if self.prefer == "ce" else 1]
        both = correction + 0.5
        if self.rescale:
            both /= 1 + (self.alpha**2 if self.rescale == 1 else self.alpha)
        ce, kd = both.unbind()
        return ce, kd, lam

    def _of_length(self, norms: Norms, w_ce: Tensor, w_kd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along g_w with the length of STEP plain or supervised; lambda is 0."""
        direction, length, plain = self._direction(norms, w_ce, w_kd)
        wanted = plain
        if self.step == "supervised":
            # Of a single gradient that is not zero, its own length.
            one_alone = (norms.ce == 0) | (norms.kd == 0)
            wanted = torch.where(one_alone, plain, norms.ce * (2 + 2 * norms.c_12).sqrt())
        both = direction * (wanted * inverse_above(length, _VANISHED))
        if self.step == "plain":
            # Unit gradients that cancel have no direction but that of the plain gradient.
            both = torch.where(length <= _VANISHED, torch.ones_like(both), both)
        ce, kd = both.unbind()
        return ce, kd, torch.zeros_like(w_ce)

    def _unstabilized(
        self, norms: Norms, w_ce: Tensor, w_kd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 9: the preferred loss has weight 1, the other one its clipped ratio; lambda is 0."""
        direction, length, _ = self._direction(norms, w_ce, w_kd)
        a, b = direction.unbind()
        fixed, free = (a, b) if self.prefer == "ce" else (b, a)
        one = torch.ones_like(fixed)
        ratio = free / torch.where(fixed > 0, fixed, one)
        ratio = torch.where(fixed > 0, ratio, one * self.max_ratio).clamp_max(self.max_ratio)
        # A zero gradient leaves nothing to balance: the other one is used as it is.
        ratio = torch.where((norms.ce == 0) | (norms.kd == 0), one, ratio)
        vanished = length <= _VANISHED
        one, ratio = (torch.where(vanished, one / 2, x) for x in (one, ratio))
        ce, kd = (one, ratio) if self.prefer == "ce" else (ratio, one)
        return ce, kd, torch.zeros_like(ce)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {expected}, not {value!r}")
