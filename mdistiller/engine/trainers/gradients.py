"""The gradients of a distiller's losses side by side, for trainers that weight them."""

from __future__ import annotations

from mdistiller.distillers import Distiller
from mdistiller.weighting.rows import Rows


class GradientRows(Rows):
    """:class:`~mdistiller.weighting.rows.Rows` over a distiller's parameters.

    theta are the student's; the distiller's other learnable parameters are the extra ones.

    Args:
        distiller: on the device and in the dtype of the run.
        count: how many losses.
    """

    def __init__(self, distiller: Distiller, count: int) -> None:
        student = list(distiller.student.parameters())
        super().__init__(student, distiller.get_learnable_parameters(), count)
