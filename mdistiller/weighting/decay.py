"""Schedule of the loss weights that fades the teacher out (section 3.3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecaySchedule:
    """Weights that move linearly from one pair to another between two points of the training.

    Progress 0 is the beginning of the training, 1 its end. Up to ``start`` the weights are
    (ce_from, kd_from); from ``end`` on they are (ce_to, kd_to + beta), beta being a small
    regularisation by the teacher that is switched on when the decay is over.

    Raises:
        ValueError: not 0 <= start <= end <= 1, or a weight that is negative.
    """

    ce_from: float = 0.1
    ce_to: float = 1.0
    kd_from: float = 0.9
    kd_to: float = 0.0
    start: float = 0.5
    end: float = 0.75
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be in [0, 1], not {self.start}")
        if not self.start <= self.end <= 1:
            raise ValueError(f"end must be in [start, 1] = [{self.start}, 1], not {self.end}")
        for name in ("ce_from", "ce_to", "kd_from", "kd_to", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or greater, not {getattr(self, name)}")

    def __call__(self, progress: float) -> tuple[float, float]:
        """Weights (ce, kd) at ``progress`` in [0, 1]."""
        if progress >= self.end:
            return self.ce_to, self.kd_to + self.beta
        if progress <= self.start:
            return self.ce_from, self.kd_from
        share = (progress - self.start) / (self.end - self.start)
        return (
            self.ce_from + share * (self.ce_to - self.ce_from),
            self.kd_from + share * (self.kd_to - self.kd_from),
        )
