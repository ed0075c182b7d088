"""Where in a network its features are: found by watching one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mdistiller.errors import ConfigError
from mdistiller.models._common import eval_mode
from mdistiller.registry import nearest

FEATURES = {"feats", "preact_feats", "pooled_feat"}

_NO_ACTIVATIONS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.MultiheadAttention)


@dataclass(frozen=True)
class Stage:
    """A map that a network gives.

    Attributes:
        module: name of the module that returns it.
        call: which of the module's calls in a forward pass does, from 0.
        activation: name of the activation whose output it is; empty if it is none's.
        norm: name of the BatchNorm in front of that activation; empty if there is none.
        channels_last: it is [B, H, W, C].
        altered: the network changes it in place later on.
    """

    module: str
    call: int
    activation: str = ""
    norm: str = ""
    channels_last: bool = False
    altered: bool = False


@dataclass(frozen=True)
class Plan:
    """What to collect in a forward pass.

    Attributes:
        stages: two or more, or none; the first counts as the stem.
        classifier: name and call of the last linear layer; None without one.
        pooled: the map whose mean over the positions the classifier gets; None without one.
        rectified: it is that map's ReLU of which it gets the mean.
    """

    stages: tuple[Stage, ...]
    classifier: tuple[str, int] | None
    pooled: Stage | None = None
    rectified: bool = False

    @property
    def has_preacts(self) -> bool:
        """Whether all stages after the stem end with an activation."""
        return bool(self.stages) and all(stage.activation for stage in self.stages[1:])

    @property
    def keys(self) -> tuple[str, ...]:
        """The features that the network gives."""
        found = ("feats",) * bool(self.stages) + ("preact_feats",) * self.has_preacts
        return (*found, *(("pooled_feat",) if self.classifier else ()))


@dataclass
class _Call:
    """What one module did in the pass that is watched."""

    name: str
    number: int
    module: nn.Module
    source: Any
    output: Any
    version: int
    activation: str = ""

    def map_size(self) -> tuple[int, int] | None:
        """Height and width of the output, a map of one image; None if it is none."""
        return _size(self.output)


def _size(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[0] != 1:
        return None
    first, second, third = value.shape[1:]
    return (first, second) if first == second != third else (second, third)


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` works on each value by itself, as a ReLU does."""
    home = type(module).__module__
    known = home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations")
    return known and not isinstance(module, _NO_ACTIVATIONS)


def watch(network: nn.Module, image: Tensor) -> tuple[Any, list[_Call]]:
    """What ``network`` returns for ``image``, and the calls of its modules as they end."""
    calls: list[_Call] = []
    numbers: Counter[str] = Counter()

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        version = output._version if isinstance(output, Tensor) else 0
        call = _Call(name, numbers[name], module, args[0] if args else None, output, version)
        numbers[name] += 1
        calls.append(call)
        ended = (c for c in reversed(calls) if c.output is output and is_activation(c.module))
        call.activation = next((c.name for c in ended), "")

    hooks = [
        module.register_forward_hook(lambda *a, name=name: note(name, *a))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with eval_mode(network), torch.no_grad():
            return network(image), calls
    finally:
        for hook in hooks:
            hook.remove()


def make_plan(
    calls: Sequence[_Call],
    logits: Tensor,
    named: Sequence[str] = (),
    usual: Iterable[str] = (),
    words: str = "DISTILLER.FEATURES",
) -> Plan:
    """Where the features are.

    Args:
        calls, logits: of a forward pass of one image.
        named: modules that a user has named; empty: ``usual``, those that the network's library
            names, where they give two maps or more, else those that :func:`_find` finds.
        words: the key of ``named`` and the network, for messages.

    Raises:
        ConfigError: a module of ``named`` does not exist or gives no map.
    """
    if named:
        chosen = _named(calls, named, words)
    else:
        last = {call.name: call for call in calls}
        chosen = [last[name] for name in usual if name in last and _large(last[name].map_size())]
        chosen = chosen if len(chosen) > 1 else list(_find(calls))
    stages = [_stage(calls, call) for call in chosen]
    classifier = _classifier(calls, logits)
    return Plan(
        tuple(stages) if len(stages) > 1 else (),
        None if classifier is None else (classifier.name, classifier.number),
        *_pooled(calls, classifier),
    )


def _named(calls: Sequence[_Call], names: Sequence[str], words: str) -> list[_Call]:
    if len(names) < 2:
        raise ConfigError(f"{words}: name two modules or more, for the first counts as the stem")
    last = {call.name: call for call in calls}
    for name in names:
        if name not in last:
            guess = nearest(name, last)
            hint = f"; did you mean {guess}?" if guess else f"; it has {', '.join(list(last)[:8])}"
            raise ConfigError(f"{words} has no module {name!r} that is called{hint}")
        if last[name].map_size() is None:
            maps = [call.name for call in _find(calls)]
            hint = f"such as {', '.join(maps)}" if maps else "which this network does not have"
            raise ConfigError(
                f"{words}: {name} gives no map [B, C, H, W]; name modules that do, {hint}"
            )
    return [last[name] for name in names]


def _large(size: tuple[int, int] | None) -> bool:
    """Whether a map has more than one position: else nothing can be compared on it."""
    return size is not None and size != (1, 1)


def _find(calls: Sequence[_Call]) -> Iterator[_Call]:
    """The last output of each size, from the first to the last; sizes fall.

    What lies within a block on the way to its output is no end of a stage, nor what a pooling
    layer makes of one. A plain nn.Sequential is no block.
    """
    blocks: dict[str, list[_Call]] = {}
    for call in calls:
        if type(call.module) is not nn.Sequential:
            blocks.setdefault(call.name, []).append(call)
    pooled = {id(c.output) for c in calls if "pool" in type(c.module).__name__.lower()}
    ends: dict[int, int] = {}
    for position, call in enumerate(calls):
        size = call.map_size()
        if size is None or not 1 < size[0] == size[1] or _channels(call.output) <= 3:
            continue
        parts = call.name.split(".")
        around = [b for n in range(1, len(parts)) for b in blocks.get(".".join(parts[:n]), ())]
        if id(call.output) not in pooled and all(_shows(block, size[0]) for block in around):
            ends[size[0]] = position
    smallest = float("inf")
    for height, position in sorted(ends.items(), key=lambda item: item[1]):
        if height < smallest:
            yield calls[position]
            smallest = height


def _shows(block: _Call, size: int) -> bool:
    """Whether maps of ``size`` within ``block`` may be ends of stages.

    Those that it begins with are not, if it goes on to smaller ones; nor are those that are
    neither between its input's size and its output's, nor any where it gets tokens.
    """
    before, after = _size(block.source), block.map_size()
    if before is None:
        return False
    if after is None:
        return size < before[0]
    return after[0] <= size < before[0] or size == after[0] == before[0]


def _channels(output: Tensor) -> int:
    return output.shape[3 if _is_channels_last(output) else 1]


def _is_channels_last(output: Tensor) -> bool:
    first, second, third = output.shape[1:]
    return first == second != third


def _stage(calls: Sequence[_Call], call: _Call) -> Stage:
    return Stage(
        call.name,
        call.number,
        call.activation,
        _norm_before(calls, call),
        _is_channels_last(call.output),
        call.output._version != call.version,
    )


def _norm_before(calls: Sequence[_Call], stage: _Call) -> str:
    """The BatchNorm whose output the stage's activation gets, alone or plus a shortcut's."""
    positions = [i for i, c in enumerate(calls) if c.output is stage.output]
    if not stage.activation:
        return ""
    around = {c.name for c in calls if isinstance(c.module, nn.BatchNorm2d)}
    parent = stage.activation.rpartition(".")[0]
    if parent in around:  # a BatchNorm with an activation of its own
        return parent
    for call in reversed(calls[: positions[0]]):
        shortcut = any(word in call.name for word in ("downsample", "shortcut"))
        if isinstance(call.module, nn.BatchNorm2d) and not shortcut:
            return call.name if call.output.shape == stage.output.shape else ""
    return ""


def _classifier(calls: Sequence[_Call], logits: Tensor) -> _Call | None:
    for call in reversed(calls):
        if isinstance(call.module, nn.Linear) and call.output.shape == logits.shape:
            flat = isinstance(call.source, Tensor) and call.source.flatten(1).shape[1]
            return call if flat == call.module.in_features else None
    return None


def _pooled(calls: Sequence[_Call], classifier: _Call | None) -> tuple[Stage | None, bool]:
    """The last map of which the classifier gets the mean, and whether of its ReLU."""
    if classifier is None or classifier.source.is_meta:  # the latter has no values
        return None, False
    wanted = classifier.source.flatten(1)
    close = partial(torch.allclose, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    found: tuple[Stage | None, bool] = None, False
    for call in reversed(calls[: calls.index(classifier)]):
        # A map that is changed later on no longer says what was pooled.
        if call.map_size() is None or call.output._version != call.version:
            continue
        last = _is_channels_last(call.output)
        here = call.output.permute(0, 3, 1, 2) if last else call.output
        if here.shape[1] != wanted.shape[1]:
            continue
        for rectified, value in ((False, here), (True, here.relu())):
            if close(value.mean((2, 3))):
                if _large(call.map_size()):
                    return Stage(call.name, call.number, channels_last=last), rectified
                # Of one pixel, as what a pooling layer returns is: the first one.
                found = Stage(call.name, call.number, channels_last=last), rectified
                break
    return found
