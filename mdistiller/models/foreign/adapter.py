"""Images as another network wants them: normalised in its way, of its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.errors import ConfigError

_CHILD = "input_adapter"


class InputAdapter(nn.Module):
    """From images normalised with one mean and deviation to another one's, and to a size.

    Args:
        have, want: (mean, standard deviation), three values each, of pixels in 0..1; None for
            both leaves the values alone.
        size: height and width of the result; 0 leaves them alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, have: Any, want: Any, size: int = 0) -> None:
        super().__init__()
        scale, shift = torch.ones(3, dtype=torch.double), torch.zeros(3, dtype=torch.double)
        if want is not None:
            (mean, std), (new_mean, new_std) = (
                [torch.tensor(values, dtype=torch.double) for values in pair]
                for pair in (have, want)
            )
            scale, shift = std / new_std, (mean - new_mean) / new_std
        # Not persistent: a state dict stays the network's own.
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(3, 1, 1), persistent=False)
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 3, size, size], smoothed where it shrinks."""
        image = image * self.scale + self.shift
        if not self.size or image.shape[2:] == (self.size, self.size):
            return image
        return F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)


def adapt_input(
    network: nn.Module,
    loader: Any,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    size: int = 0,
) -> nn.Module:
    """Let ``network`` see the images of ``loader`` as it was trained to; returns it.

    Args:
        loader: has ``mean`` and ``std``, with which its images are normalised.
        mean, std: what the network was trained with; empty: what its published weights say,
            and where it has none of these, the data set's own.
        size: height and width that it was trained with; 0: the images'.

    Raises:
        ConfigError: the data set does not say how its images are normalised.
    """
    want = (tuple(mean), tuple(std)) if mean else getattr(network, "expects", None)
    have = (getattr(loader, "mean", None), getattr(loader, "std", None))
    if want is not None and None in have:
        raise ConfigError(
            f"{type(loader).__name__} does not say with which mean and std its images are "
            f"normalised, so they cannot be brought to the teacher's; set its mean and std"
        )
    if (want is None or have == want) and not size:
        return network
    network.add_module(_CHILD, InputAdapter(have, want, size))
    network.register_forward_pre_hook(_adapt)
    return network


def _adapt(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Of the module that is called, so that a copy uses its own.
    return getattr(network, _CHILD)(args[0]), *args[1:]
