"""Ideas for a cheaper step on a CPU that are measured beside what is done, and are not kept.

Weight gradients of two losses (ResNet's 3x3 convolutions, as resnet20 has them): one after the
other; by one convolution over the joined cotangents; by one matrix product over the unfolded
input. Batch norm with ReLU, forward and two backward passes: PyTorch's; as one function that
masks by its input and does not keep its output; as one that keeps the output alone; compiled.
All take turns; a ratio is taken within each round.

example:
  python benchmarks/ideas.py --threads 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import _common as common
import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.cli import exit_on_error

BATCH = 64
# Channels and side of the maps of resnet20's three stages.
STAGES = ((16, 32), (32, 16), (64, 8))
_EPS = 1e-5


def _maps(channels: int, side: int) -> Tensor:
    return torch.randn(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last)


# ---- weight gradients ------------------------------------------------------------------------


def _weight_gradient(cotangent: Tensor, x: Tensor) -> Tensor:
    weight = x.new_empty(cotangent.shape[1], x.shape[1], 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    ones, mask = [1, 1], [False, True, False]
    return torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, ones, ones, ones, False, [0, 0], 1, mask
    )[1]


def one_by_one(x: Tensor, g1: Tensor, g2: Tensor) -> Tensor:
    """The gradients [2 C, C, 3, 3] of both losses, by two passes."""
    return torch.cat([_weight_gradient(g1, x), _weight_gradient(g2, x)])


def joined(x: Tensor, g1: Tensor, g2: Tensor) -> Tensor:
    """The same by one convolution with twice the channels."""
    return _weight_gradient(torch.cat([g1, g2], dim=1), x)


def product(x: Tensor, g1: Tensor, g2: Tensor) -> Tensor:
    """The same by one matrix product; the input is laid out window by window before it."""
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    s = padded.stride()
    shape, strides = (batch, height, width, 3, 3, channels), (*s[:3], *s[1:])
    windows = padded.as_strided(shape, strides).reshape(batch * height * width, 9 * channels)
    both = torch.cat([g.permute(0, 2, 3, 1).reshape(-1, g.shape[1]) for g in (g1, g2)], dim=1)
    return (both.t() @ windows).view(-1, 3, 3, channels).permute(0, 3, 1, 2)


WEIGHT_GRADIENTS = {"two passes": one_by_one, "joined": joined, "one product": product}


# ---- batch norm and ReLU ---------------------------------------------------------------------


class Recomputed(torch.autograd.Function):
    """relu(bn(x)); the backward pass finds the mask by x again and the output is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, _EPS)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return out.relu_()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        slope = weight * scale
        offset = (bias - mean * slope).view(1, -1, 1, 1)
        g = g * (torch.addcmul(offset, x, slope.view(1, -1, 1, 1)) > 0)
        return torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, scale, True, _EPS, [True] * 3
        )


class InPlace(torch.autograd.Function):
    """relu(bn(x)) in the memory of bn(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, _EPS)
        ctx.save_for_backward(x, weight, out.relu_(), mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        x, weight, out, mean, scale = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(g, out, 0)
        return torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, scale, True, _EPS, [True] * 3
        )


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's two functions, as the networks call them."""
    return F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=_EPS))


BATCH_NORMS: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "recomputed": Recomputed.apply,
    "in place": InPlace.apply,
    "compiled": torch.compile(plain, dynamic=False),
}


def two_backward(norm: Callable[..., Tensor], inputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """The gradients of two losses for the images."""
    out = norm(*inputs)
    first = torch.autograd.grad(out, inputs, g, retain_graph=True)[0]
    return torch.cat([first, torch.autograd.grad(out, inputs, 2 * g)[0]])


# ---- measuring -------------------------------------------------------------------------------


def turns(
    ways: dict[str, Callable[[], Tensor]], repeats: int, cpu_time: bool
) -> dict[str, list[float]]:
    """Milliseconds of each way in each round, after two rounds that do not count.

    Raises:
        AssertionError: a way gives another result than the first one.
    """
    now = common.clock(torch.device("cpu"), cpu_time)
    found: dict[str, list[float]] = {name: [] for name in ways}
    right: Tensor | None = None
    for number in range(repeats + 2):
        for name, way in ways.items():
            began = now()
            result = way()
            took = (now() - began) * 1e3
            if number >= 2:
                found[name].append(took)
            right = result if right is None else right
            # A ReLU's mask may flip where its input is rounded to another side of zero.
            if number == 0 and (result - right).norm() > 1e-2 * right.norm():
                raise AssertionError(f"{name} gives another result")
    return found


def cases() -> dict[str, dict[str, Callable[[], Tensor]]]:
    """What is compared, by the maps that it works on."""
    found: dict[str, dict[str, Callable[[], Tensor]]] = {}
    for channels, side in STAGES:
        x, g1, g2 = (_maps(channels, side) for _ in range(3))
        size = f"{channels} channels, {side} x {side}"
        found[f"weight gradients, {size}"] = {
            name: lambda way=way, x=x, g1=g1, g2=g2: way(x, g1, g2)
            for name, way in WEIGHT_GRADIENTS.items()
        }
        inputs = (x, torch.rand(channels), torch.randn(channels))
        inputs = tuple(i.detach().clone().requires_grad_() for i in inputs)
        found[f"batch norm and ReLU, {size}"] = {
            name: lambda way=way, inputs=inputs, g=g1: two_backward(way, inputs, g)
            for name, way in BATCH_NORMS.items()
        }
    return found


@exit_on_error
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="this process's, not the clock's")
    args = common.start(parser)
    torch.manual_seed(0)
    rows, measured = [], {}
    for case, ways in cases().items():
        measured[case] = found = turns(ways, args.repeats, args.cpu_time)
        base = next(iter(found.values()))
        for name, own in found.items():
            low, ratio, high = common.quartiles([a / b for a, b in zip(own, base, strict=True)])
            milliseconds = f"{common.quartiles(own)[1]:.2f}"
            rows.append((case, name, milliseconds, f"{ratio:.2f} ({low:.2f} to {high:.2f})"))
    facts = common.machine(torch.device("cpu"))
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "milliseconds": measured}) + "\n")
    print(common.describe(facts))
    print(common.table(("what", "way", "ms", "/ first"), rows, args.markdown))


if __name__ == "__main__":
    main()
