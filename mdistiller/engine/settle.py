"""Running statistics that are those of the trained network when a short training ends."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdistiller.console import log
from mdistiller.models import name_of

# Of a training, the last part of which the running statistics are to be a mean.
_PART = 1 / 20
# PyTorch's own momentum, which no training is too short for.
_USUAL = 0.1


def settle_statistics(student: nn.Module, steps: int) -> None:
    """Raise the momentum of BatchNorm layers whose statistics would lag ``steps`` steps behind.

    Some networks are made for trainings of many thousand steps: torchvision's MobileNetV3 has the
    momentum 0.01, its MNASNet 0.0003. After some hundred steps their running statistics are still
    partly the initial ones, and they validate at chance while they fit the training images. No
    momentum is lowered, none raised above 0.1, and none changed from 20 / momentum steps on.
    """
    least = min(_USUAL, 1 / (_PART * max(steps, 1)))
    raised = set()
    for module in student.modules():
        # None is a plain mean over all steps, 0 means that nothing is to be learned.
        if isinstance(module, _BatchNorm) and module.momentum and module.momentum < least:
            raised.add(module.momentum)
            module.momentum = least
    if raised:
        log(
            f"student {name_of(student)}: BatchNorm momentum "
            f"{', '.join(f'{m:.3g}' for m in sorted(raised))} raised to {least:.3g}; in {steps} "
            "steps its running statistics would lag behind"
        )
