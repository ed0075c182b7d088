"""A network of others behind the interface that the methods here use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mdistiller.errors import ConfigError

from .stages import FEATURES, Plan, Stage, make_plan, watch


def logits_of(answer: Any) -> Tensor:
    """The logits [B, C] in what a network returns: them alone, or first, or called so."""
    if isinstance(answer, Tensor):
        return answer
    return answer.logits if hasattr(answer, "logits") else answer[0]


def bare(network: nn.Module) -> nn.Module:
    """The network inside a :class:`Foreign`; any other network as it is."""
    return network.net if isinstance(network, Foreign) else network


def name_of(network: nn.Module) -> str:
    """What messages call a network: a :class:`Foreign`'s name, or the class's."""
    return network.name if isinstance(network, Foreign) else type(network).__name__


class Foreign(nn.Module):
    """Maps images to (logits [B, C], features) by way of a network that returns logits alone.

    ``features`` has ``feats``, the maps [B, C, H, W] of the network's stages, the first of which
    counts as the stem; ``preact_feats``, the same before the activation that ends each stage;
    ``pooled_feat`` [B, C], what the last linear layer gets; ``pooled_map`` [B, C, H, W], the map
    whose mean over the positions that is. What the network does not have is left out. See
    :mod:`.stages` for how they are found.

    The state dict is the bare network's. Hooks exist while a forward pass runs only, so that
    copies, pickles and threads are as safe as with the bare network.

    Args:
        net: the network; its activations no longer work in place.
        name: for messages.
        size: height and width of the images that it is to take.
        named, usual: as for ``make_plan``.
        key: of ``named``, for messages.

    Attributes:
        expects: (mean, std) that published weights were trained with; None: the data set's.

    Raises:
        ConfigError: the network does not take such images, or has no module of a name.
    """

    expects: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __init__(
        self,
        net: nn.Module,
        name: str,
        size: int,
        named: Sequence[str] = (),
        usual: Sequence[str] = (),
        key: str = "DISTILLER.FEATURES",
    ) -> None:
        super().__init__()
        _keep_from_compilers()
        self.net, self.name = net, name
        for module in net.modules():
            # Else the value before the activation, or a stage's map, would be gone.
            if getattr(module, "inplace", None) is True:
                setattr(module, "inplace", False)  # noqa: B010
        answer, calls = try_out(net, name, size)
        self.plan: Plan = make_plan(calls, logits_of(answer), named, usual, f"{key}: {name}")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The inner network's turn comes next; no hook, for a copy's would be the original's.
        for key in [k for k in state_dict if k.startswith(prefix)]:
            state_dict[f"{prefix}net.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any):
        """The bare network's."""
        return self.net.state_dict(*args, destination=destination, prefix=prefix, **kwargs)

    @property
    def lacks(self) -> set[str]:
        """The features that networks here have and this one does not."""
        return FEATURES - {*self.plan.keys}

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The BatchNorm in front of the activation of each stage after the stem.

        Raises:
            NotImplementedError: a stage has none.
        """
        names = [stage.norm for stage in self.plan.stages[1:]]
        if not all(names):
            raise NotImplementedError(f"{self.name} has stages without a BatchNorm at the end")
        return [cast(nn.BatchNorm2d, self.net.get_submodule(name)) for name in names]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _keep_from_compilers()

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        seen = _Collector(self.plan)
        hooks = seen.attach(self.net)
        try:
            with _known_statistics(self.net, self.training and len(image) == 1):
                answer = self.net(image)
        finally:
            for hook in hooks:
                hook.remove()
        return logits_of(answer), seen.features()


@cache
def _keep_from_compilers() -> None:
    """A compiler would bake the hooks of one call of ``Foreign.forward`` into its code.

    Said by the first of them that there is: it imports the compiler, which takes longer than all
    that a tool needs otherwise.
    """
    Foreign.forward = torch.compiler.disable(Foreign.forward)  # type: ignore[method-assign]


@contextmanager
def _known_statistics(net: nn.Module, wanted: bool) -> Iterator[None]:
    """If ``wanted``, BatchNorm layers use their running statistics.

    For a batch of one image, of whose maps of one pixel there are no others.
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training and wanted]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def try_out(net: nn.Module, name: str, size: int) -> tuple[Any, Any]:
    """:func:`watch` of one image of height and width ``size``, the same one always.

    It is not black: in many a network without training zeros stay zeros, and all maps look alike.

    Raises:
        ConfigError: the network does not take it.
    """
    like = next(net.parameters(), torch.empty(0))
    image = torch.arange(3 * size**2, dtype=torch.float, device=like.device).sin()
    image = image.view(1, 3, size, size).to(like.dtype)
    try:
        return watch(net, image)
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:150]
        raise ConfigError(
            f"{name} cannot take images of {size}x{size} ({reason}); choose another network, or, "
            "for a teacher, the size that it needs with DISTILLER.TEACHER_SIZE"
        ) from error


class _Collector:
    """Collects the features of one forward pass."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._calls: Counter[str] = Counter()
        stages = [*([plan.pooled] if plan.pooled else []), *plan.stages]
        self._wanted = {(stage.module, stage.call): stage for stage in stages}
        self._activations: dict[str, tuple[Tensor, Tensor]] = {}
        self._maps: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}
        self._pooled: Tensor | None = None

    def attach(self, net: nn.Module) -> list[Any]:
        """Handles of the hooks, to be removed by the caller."""
        plan, hooks = self.plan, []
        # First: an activation may itself be the module that ends a stage.
        for name in dict.fromkeys(s.activation for s in plan.stages if s.activation):
            hooks.append(self._hook(net, name, self._on_activation))
        for name in dict.fromkeys(name for name, _ in self._wanted):
            hooks.append(self._hook(net, name, self._on_stage))
        if plan.classifier:
            hooks.append(self._hook(net, plan.classifier[0], self._on_classifier))
        return hooks

    @staticmethod
    def _hook(net: nn.Module, name: str, act: Any) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            act(name, args[0] if args else None, output)

        return net.get_submodule(name).register_forward_hook(hook)

    def _on_activation(self, name: str, source: Tensor, output: Tensor) -> None:
        self._activations[name] = source, output

    def _on_stage(self, name: str, source: Tensor, output: Tensor) -> None:
        key = name, self._calls[name]
        self._calls[name] += 1
        if key not in self._wanted:
            return
        stage, before = self._wanted[key], None
        if stage.activation:
            before, after = self._activations[stage.activation]
            before = before if after is output else None
        self._maps[key] = _kept(output, stage), None if before is None else _kept(before, stage)

    def _on_classifier(self, name: str, source: Tensor, output: Tensor) -> None:
        key = f"classifier {name}"
        if (name, self._calls[key]) == self.plan.classifier:
            self._pooled = source.flatten(1)
        self._calls[key] += 1

    def _pooled_map(self, stage: Stage) -> Tensor:
        found, _ = self._maps[stage.module, stage.call]
        return F.relu(found) if self.plan.rectified else found

    def features(self) -> dict[str, Any]:
        """See :class:`Foreign`."""
        found: dict[str, Any] = {}
        maps = [self._maps[stage.module, stage.call] for stage in self.plan.stages]
        if maps:
            found["feats"] = [after for after, _ in maps]
        if self.plan.has_preacts:
            found["preact_feats"] = [after if pre is None else pre for after, pre in maps]
        if self._pooled is not None:
            found["pooled_feat"] = self._pooled
        if self.plan.pooled is not None:
            found["pooled_map"] = self._pooled_map(self.plan.pooled)
        return found


def _kept(found: Tensor, stage: Stage) -> Tensor:
    """What is kept of a map of ``stage``: [B, C, H, W], safe from what the network does next."""
    found = found.clone() if stage.altered else found
    return found.permute(0, 3, 1, 2) if stage.channels_last else found
