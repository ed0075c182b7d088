"""A frozen network with its BatchNorm layers merged into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _Uses(TorchFunctionMode):
    """Counts how often each tensor is an argument of a function that returns tensors.

    Functions that return none only look (``x.dim()``, ``x.shape``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            arguments = tree_leaves((args, kwargs))
            self.count.update(id(leaf) for leaf in arguments if isinstance(leaf, Tensor))
        return result


@torch.no_grad()
def foldable_pairs(network: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Names of the (convolution, BatchNorm) pairs of ``network`` that may be merged.

    Found by watching one forward pass: each layer runs once, and nothing but the BatchNorm sees
    the convolution's output, neither a function nor the caller (as a feature).

    Args:
        network: in eval mode.
        image: [1, 3, H, W] of the size the network is used with.
    """
    names = {module: name for name, module in network.named_modules()}
    calls: Counter[nn.Module] = Counter()
    # The outputs are kept, so that no id is given away again.
    made_by: dict[int, nn.Module] = {}
    kept: list[Tensor] = []
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = []

    def watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if type(module) is nn.Conv2d:
            made_by[id(output)] = module
            kept.append(output)
            uses.count[id(output)] = 0  # an earlier tensor, gone by now, may have had this id
        elif _is_fixed(module) and id(args[0]) in made_by:
            pairs.append((made_by[id(args[0])], module, args[0]))

    uses = _Uses()
    hooks = [m.register_forward_hook(watch) for m in names]
    try:
        with uses:
            returned = {id(leaf) for leaf in tree_leaves(network(image))}
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (names[conv], names[bn])
        for conv, bn, between in pairs
        if calls[conv] == calls[bn] == uses.count[id(between)] == 1 and id(between) not in returned
    ]


def _is_fixed(module: nn.Module) -> bool:
    """Whether ``module`` is a BatchNorm that normalises by stored statistics."""
    return type(module) is nn.BatchNorm2d and not module.training and module.affine


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in eval mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def fold_batchnorm(network: nn.Module, image: Tensor) -> nn.Module:
    """A copy of ``network``, in eval mode, that computes the same logits and features faster.

    A BatchNorm that cannot be merged (see :func:`foldable_pairs`) stays as it is. The weights
    are merged in double precision where the device has it.
    """
    folded = frozen_copy(network)
    for conv_name, bn_name in foldable_pairs(folded, image):
        conv, bn = folded.get_submodule(conv_name), folded.get_submodule(bn_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        dtype = conv.weight.dtype
        wide = dtype if image.device.type == "mps" else torch.float64
        fused = fuse_conv_bn_eval(conv.to(wide), bn.to(wide)).to(dtype)
        _replace(folded, conv_name, fused.requires_grad_(False))
        _replace(folded, bn_name, nn.Identity())
    return folded


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
