"""How the networks compute: memory layout, bf16, and the frozen teacher's shortcut.

Nothing here changes a state dict. Losses, Gramians and updates are computed in single precision
whatever the networks do; validation and every saved weight are single precision, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from mdistiller.config import Config
from mdistiller.distillers import Distiller
from mdistiller.errors import ConfigError

from .folding import fold_batchnorm, frozen_copy

AMP_MODES = ("off", "bf16", "auto")

# A cross-batch step (resnet56 to resnet20, 64 images, 2 threads) on an x86 CPU with AVX2 alone:
# 4.7 s in bf16, 0.59 s in single precision.
EMULATION_COST = 8


def uses_bf16(mode: str, device: torch.device) -> bool:
    """Whether SOLVER.AMP ``mode`` means bf16 on ``device``; "auto" where its hardware has it."""
    return mode == "bf16" or (mode == "auto" and has_native_bf16(device))


def has_native_bf16(device: torch.device) -> bool:
    """Whether ``device`` computes in bf16 itself, not by way of single precision.

    False of a CPU that does not say so.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    x86 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, name, lambda: False)() for name in x86):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    # Of Arm, whose flags stand in a line called Features.
    return any("bf16" in line.split() for line in flags.splitlines() if line.startswith("Features"))


def check_amp(mode: str, device: torch.device) -> None:
    """Refuse a ``SOLVER.AMP`` that is no mode, or that ``device`` cannot compute in.

    Raises:
        ConfigError: one line that begins with the key.
    """
    if mode not in AMP_MODES:
        raise ConfigError(f"SOLVER.AMP must be one of {', '.join(AMP_MODES)}, not {mode!r}")
    if mode != "bf16":
        return
    if not _has_bf16(device):
        raise ConfigError(f"SOLVER.AMP bf16 is not supported by this {device.type} device; use off")
    if device.type == "cpu" and not has_native_bf16(device):
        warnings.warn(
            "SOLVER.AMP bf16: this CPU has no instructions for it (AVX512-BF16 or AMX), so a step "
            f"takes about {EMULATION_COST} times as long as in single precision; set off, or auto, "
            "which chooses",
            stacklevel=4,
        )


def check_compile(wanted: bool, device: torch.device) -> None:
    """Refuse ``SOLVER.COMPILE`` on a CPU without a C++ compiler, or a GPU that Triton cannot use.

    Raises:
        ConfigError: one line that begins with the key.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if wanted and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            "SOLVER.COMPILE needs a C++ compiler (g++ or clang++) on a CPU; use False"
        )
    if wanted and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 0) or importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "SOLVER.COMPILE needs the triton package and a GPU of compute capability 7.0 or "
                f"more (this one has {capability[0]}.{capability[1]}); use False"
            )


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.is_autocast_available(device.type)


def memory_format(cfg: Config, device: torch.device) -> torch.memory_format:
    """The layout of images and convolutions; mps keeps PyTorch's own."""
    wanted = cfg.SOLVER.CHANNELS_LAST and device.type in ("cpu", "cuda")
    return torch.channels_last if wanted else torch.preserve_format


def prepare(distiller: Distiller, cfg: Config, device: torch.device) -> torch.memory_format:
    """Make ``distiller``, which is on ``device``, compute as ``cfg.SOLVER`` says.

    Returns:
        The memory format that its images should have.
    """
    layout = memory_format(cfg, device)
    distiller.to(memory_format=layout)
    amp = uses_bf16(cfg.SOLVER.AMP, device)
    if amp:
        _Bf16(device.type).attach(distiller.student)
    solver = cfg.SOLVER
    if distiller.teacher is not None and (amp or solver.FOLD_TEACHER or solver.COMPILE):
        distiller.run_teacher = FrozenTeacher(
            distiller.teacher, fold=solver.FOLD_TEACHER, bf16=amp, compiled=solver.COMPILE
        )
    return layout


class FloatFeatures(Mapping):
    """A network's features, converted to single precision when a loss asks for them.

    A loss uses one or two of them; converting all would cost as much as a convolution.
    """

    def __init__(self, features: Mapping[str, Any]) -> None:
        self._features = dict(features)

    def __getitem__(self, name: str) -> Any:
        self._features[name] = tree_map_only(Tensor, Tensor.float, self._features[name])
        return self._features[name]

    def tensors(self) -> list[Tensor]:
        """All of them, as they are."""
        return tree_leaves(self._features)

    def copy(self) -> FloatFeatures:
        """The same tensors, to be converted anew."""
        return FloatFeatures(same_tensors(self._features))

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


def same_tensors(tree: Any) -> Any:
    """New dicts, lists and tuples around the tensors of ``tree``."""
    return tree_map(lambda leaf: leaf, tree)


def _as_float(output: tuple[Tensor, Mapping[str, Any]]) -> tuple[Tensor, FloatFeatures]:
    logits, features = output
    return logits.float(), FloatFeatures(features)


class _Bf16:
    """Hooks that make a network's forward passes in train mode bf16; its outputs are float."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self._open: list[contextlib.AbstractContextManager] = []

    def attach(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave, always_call=True)

    def _enter(self, network: nn.Module, args: Any) -> None:
        # Validation stays in single precision: it is the saved network's accuracy.
        mode = torch.autocast(self.device_type, torch.bfloat16, enabled=network.training)
        mode.__enter__()
        self._open.append(mode)

    def _leave(self, network: nn.Module, args: Any, output: Any) -> Any:
        self._open.pop().__exit__(None, None, None)
        # None: the forward pass raised.
        return _as_float(output) if network.training and output is not None else output


class FrozenTeacher:
    """Calls a teacher as it is called in training: BatchNorms merged, in bf16, compiled.

    Not a module, so that neither a state dict nor an optimizer sees the merged copy. In train
    mode (OFD's option) the teacher itself is run, since its BatchNorms then use batch statistics.

    Args:
        teacher: on its device and in its memory format; may be loaded or moved later on.
        fold: merge BatchNorm layers into convolutions.
        bf16: run under autocast; logits and features are float.
        compiled: compile the copy for the shape of the first batch; a batch of another shape
            (the last one of an epoch) runs through the copy as it is.
    """

    def __init__(
        self, teacher: nn.Module, *, fold: bool, bf16: bool, compiled: bool = False
    ) -> None:
        self.teacher = teacher
        self.fold = fold
        self.bf16 = bf16
        self.compiled = compiled
        self._copy: Callable[[Tensor], Any] = teacher
        self._compiled: Callable[[Tensor], Any] = teacher
        self._compiled_shape: torch.Size | None = None
        self._made_from: list[tuple[int, int]] = []

    def __call__(self, image: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """(logits [B, C], features) of ``image`` [B, 3, H, W]; no gradient is recorded."""
        network: Callable[[Tensor], Any] = self.teacher
        if (self.fold or self.compiled) and not self.teacher.training:
            tensors = [*self.teacher.parameters(), *self.teacher.buffers()]
            now = [(t.data_ptr(), t._version) for t in tensors]
            if now != self._made_from:
                self._make_copy(image)
                self._made_from = now
            network = self._compiled if image.shape == self._compiled_shape else self._copy
        with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            output = network(image)
        return _as_float(output) if self.bf16 else output

    def _make_copy(self, image: Tensor) -> None:
        """The copy of the teacher's weights as they are; compiled for the shape of ``image``."""
        copy = fold_batchnorm(self.teacher, image[:1]) if self.fold else frozen_copy(self.teacher)
        self._copy = copy
        if self.compiled:
            # Its weights as constants, which lets the compiler lay them out for its kernels.
            self._compiled = torch.compile(copy, dynamic=False, options={"freezing": True})
            self._compiled_shape = image.shape
