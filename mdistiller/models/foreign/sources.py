"""Where networks of others come from: torchvision, timm, and Python files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from mdistiller.config.imports import import_file
from mdistiller.errors import CheckpointError, ConfigError, MdistillerError, UnknownNameError
from mdistiller.registry import nearest

from .wrapper import Foreign, try_out

# DISTILLER.TEACHER_CKPT of this value: the weights that the network's library publishes.
PRETRAINED = "pretrained"

_WORDS = "networks of others are torchvision:NAME, timm:NAME and path/to/file.py:NAME"


def is_foreign(name: str) -> bool:
    """Whether ``name`` is of a network that is in no registry here."""
    return ":" in name


def short_name(name: str) -> str:
    """What stands for the network ``name`` in file names."""
    return name.rpartition(":")[2]


def check_foreign(name: str) -> None:
    """Refuse a name that nothing has; imports the library or runs the file.

    Raises:
        UnknownNameError: the library, or the name in it, is not known.
        ConfigError: the library is not installed, or there is no such file.
    """
    _source(name).check()


def build_foreign(
    name: str,
    num_classes: int,
    size: int,
    *,
    named: Sequence[str] = (),
    key: str = "DISTILLER.FEATURES",
    pretrained: bool = False,
) -> nn.Module:
    """The network ``name`` with random weights, or its published ones.

    Args:
        num_classes: number of logits.
        size: height and width of its images in pixels.
        named: the modules whose outputs are its maps; empty: found.
        key: of ``named``, for messages.
        pretrained: download the weights if need be.

    Returns:
        A :class:`Foreign`; a network that returns (logits, features) already, as it is.

    Raises:
        UnknownNameError, ConfigError: see :func:`check_foreign`; or it does not take these
            images, or has no module of a name.
        CheckpointError: the weights cannot be had, or are of other classes.
    """
    source = _source(name)
    source.check()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if pretrained:
            source.check_classes(num_classes)
        net = _made(source, num_classes, size, pretrained)
    if source.complete(net, size):
        return net
    network = Foreign(net, name, size, named, source.stages(net), key)
    network.expects = source.normalisation() if pretrained else None
    return network


def _made(source: _Source, num_classes: int, size: int, pretrained: bool) -> nn.Module:
    try:
        try:
            return source.build(num_classes, size, pretrained)
        except (RuntimeError, NotImplementedError):
            # Some read numbers off tensors while they are made, which those of shape only lack.
            if torch.get_default_device().type != "meta":
                raise
            with torch.device("cpu"):
                return source.build(num_classes, size, pretrained).to("meta")
    except MdistillerError:
        raise
    except Exception as error:  # whatever a library or a user's file raises
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        if pretrained:
            raise CheckpointError(
                f"cannot get the published weights of {source.full_name} ({reason}); connect to "
                "the network, or set DISTILLER.TEACHER_CKPT to a local file"
            ) from error
        raise ConfigError(
            f"{source.full_name} cannot be made with {num_classes} classes for images of "
            f"{size}x{size} ({reason}); choose another network"
        ) from error


def _source(name: str) -> _Source:
    library, _, inner = name.rpartition(":")
    if library.endswith(".py"):
        return _File(library, inner)
    for kind in (_Torchvision, _Timm):
        if library == kind.library:
            return kind(library, inner)
    guess = nearest(library, ("torchvision", "timm"))
    hint = f"did you mean {guess}:{inner}? " if guess else ""
    raise UnknownNameError(f"unknown library {library!r} of network {name!r}; {hint}{_WORDS}")


class _Source:
    """A network by name, of one kind of place.

    Attributes:
        place: the library, or the path of the file.
        name: within it.
    """

    library = ""

    def __init__(self, place: str, name: str) -> None:
        self.place, self.name = place, name

    @property
    def full_name(self) -> str:
        return f"{self.place}:{self.name}"

    def names(self) -> Collection[str]:
        """All that the place has."""
        raise NotImplementedError

    def has(self) -> bool:
        return self.name in self.names()

    def check(self) -> None:
        """See :func:`check_foreign`."""
        if self.library and importlib.util.find_spec(self.library) is None:
            raise ConfigError(
                f"{self.full_name} needs {self.library}, not installed here; "
                f"run `pip install {self.library}`"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.has():
                return
            guess = nearest(self.name, self.names())
        hint = f"; did you mean {self.place}:{guess}?" if guess else ""
        raise UnknownNameError(f"{self.place} has no network {self.name!r}{hint}")

    def build(self, num_classes: int, size: int, pretrained: bool) -> nn.Module:
        raise NotImplementedError

    def complete(self, net: nn.Module, size: int) -> bool:
        """Whether the network returns (logits, features) by itself."""
        return False

    def stages(self, net: nn.Module) -> list[str]:
        """The modules that the library names as ends of stages, if it does."""
        return []

    def published_classes(self) -> int | None:
        """Of the published weights; None if there are none."""
        return None

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the published weights' images."""
        raise NotImplementedError

    def check_classes(self, num_classes: int) -> None:
        """Refuse published weights that do not exist, or of other classes."""
        classes = self.published_classes()
        if classes is None:
            raise CheckpointError(
                f"there are no published weights for {self.full_name}; set "
                "DISTILLER.TEACHER_CKPT to a file"
            )
        if classes != num_classes:
            raise CheckpointError(
                f"the published weights of {self.full_name} are of {classes} classes, the data "
                f"set has {num_classes}; train a teacher on it (DISTILLER.TYPE NONE) and set "
                "DISTILLER.TEACHER_CKPT to its student_latest"
            )


class _Torchvision(_Source):
    library = "torchvision"

    def names(self) -> Collection[str]:
        from torchvision import models

        return models.list_models(module=models)

    def build(self, num_classes: int, size: int, pretrained: bool) -> nn.Module:
        from torchvision import models

        builder = models.get_model_builder(self.name)
        family = builder.__module__.rpartition(".")[2]
        options: dict[str, Any] = {"num_classes": num_classes}
        if family == "vision_transformer":
            options["image_size"] = size
        if family in ("googlenet", "inception") and not pretrained:
            options |= {"aux_logits": False, "init_weights": True}
        return builder(weights=self._weights() if pretrained else None, **options)

    def _weights(self) -> Any:
        from torchvision import models

        return models.get_model_weights(self.name).DEFAULT

    def published_classes(self) -> int | None:
        return len(self._weights().meta["categories"])

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        transforms = self._weights().transforms()
        return tuple(transforms.mean), tuple(transforms.std)


class _Timm(_Source):
    library = "timm"

    def names(self) -> Collection[str]:
        return importlib.import_module("timm").list_models()

    def has(self) -> bool:
        return importlib.import_module("timm").is_model(self.name)

    def build(self, num_classes: int, size: int, pretrained: bool) -> nn.Module:
        timm = importlib.import_module("timm")
        known = self._published()
        # Networks of tokens have a weight for each place in the image.
        fixed = known is not None and known.fixed_input_size
        options = {"img_size": size} if fixed else {}
        return timm.create_model(
            self.name, pretrained=pretrained, num_classes=num_classes, **options
        )

    def stages(self, net: nn.Module) -> list[str]:
        info = getattr(net, "feature_info", None) or []
        rows = info.get_dicts() if hasattr(info, "get_dicts") else info
        return [row["module"] for row in rows if isinstance(row, dict) and row.get("module")]

    def _published(self) -> Any:
        models = importlib.import_module("timm.models")
        try:
            return models.get_pretrained_cfg(self.name)
        except RuntimeError as error:  # an unknown tag
            raise UnknownNameError(f"{self.full_name}: {' '.join(str(error).split())}") from None

    def published_classes(self) -> int | None:
        known = self._published()
        return known.num_classes if known is not None and known.has_weights else None

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        known = self._published()
        return tuple(known.mean), tuple(known.std)


class _File(_Source):
    def _contents(self) -> dict[str, Callable[..., Any]]:
        module = import_file(self.place, f"network {self.full_name}")
        return {n: v for n, v in vars(module).items() if callable(v) and not n.startswith("_")}

    def names(self) -> Collection[str]:
        return self._contents()

    def build(self, num_classes: int, size: int, pretrained: bool) -> nn.Module:
        make = self._contents()[self.name]
        if "num_classes" not in inspect.signature(make).parameters:
            raise ConfigError(f"{self.full_name} must take num_classes")
        net = make(num_classes=num_classes)
        if not isinstance(net, nn.Module):
            raise ConfigError(
                f"{self.full_name} must return a torch.nn.Module, not {type(net).__name__}"
            )
        return net

    def complete(self, net: nn.Module, size: int) -> bool:
        answer, _ = try_out(net, self.full_name, size)
        return isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)
