"""Answers of a teacher: how they are computed for a file, and how a training reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mdistiller.config import Config
from mdistiller.console import Seldom, log
from mdistiller.dataset import ArrayLoader, Loader, get_dataset
from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller, distiller_dict
from mdistiller.engine.rundir.resume import weights_hash
from mdistiller.engine.runtime.precision import FrozenTeacher, memory_format, uses_bf16
from mdistiller.engine.teacher import before_permuting, build_teacher
from mdistiller.errors import ConfigError, DataError

from .file import BLOCK, CacheFile, Header, differences, open_or_create

KEY = "DISTILLER.TEACHER_CACHE"
LAST_MAP = "last_map"

# What a file can keep of an answer, in this order.
PARTS = ("logits", "pooled_feat", LAST_MAP)

# How long to wait before looking again for blocks that other processes have left undone.
_WAIT_SECONDS = 0.5


def check_cache(cfg: Config) -> None:
    """Refuse a DISTILLER.TEACHER_CACHE that cannot serve the method, before anything is loaded.

    Raises:
        ConfigError: one line that begins with the key.
    """
    file, name = cfg.DISTILLER.TEACHER_CACHE, cfg.DISTILLER.TYPE
    if not file or name == "NONE":
        return
    if not distiller_dict[name].reads_cache:
        raise ConfigError(
            f"{KEY} keeps a teacher's logits and pooled features, but DISTILLER.TYPE {name} needs "
            "more of it; leave the key empty"
        )
    if not Path(file).exists():
        raise ConfigError(
            f"{KEY}: there is no file {file}; make it with python tools/cache_teacher.py "
            f"--cfg ... --out {file}"
        )


def array_loader(cfg: Config, loader: Loader) -> ArrayLoader:
    """``loader``, whose images have few variants.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(loader, ArrayLoader):
        raise ConfigError(
            f"{KEY} works for data sets in memory, whose images have few crops and flips; "
            f"DATASET.TYPE {cfg.DATASET.TYPE} is none, so leave it empty"
        )
    return loader


def bound_to(cfg: Config, teacher: nn.Module, loader: ArrayLoader) -> dict[str, Any]:
    """What a file of answers must be of, to serve this teacher on these images.

    It is of the whole set, so that one file serves every choice of them, and of the teacher before
    its logits were permuted, so that one serves every order.
    """
    recipe, node, whole = loader.recipe, cfg.DISTILLER, loader.dataset.whole
    return {
        "teacher": {
            "name": cfg.DISTILLER.TEACHER,
            "sha256": weights_hash(before_permuting(cfg, teacher)[0]),
            # Of a network of others, whose state does not hold them.
            "input": [*node.TEACHER_MEAN, *node.TEACHER_STD, node.TEACHER_SIZE],
            "features": list(node.FEATURES.TEACHER),
        },
        "data": {
            "type": cfg.DATASET.TYPE,
            "images": len(whole),
            "sha256": whole.sha256,
        },
        "recipe": {
            "padding": loader.dataset.padding,
            "flip": recipe.flip,
            "mean": list(recipe.mean),
            "std": list(recipe.std),
        },
        "variants": loader.variants,
    }


# ---- computing them --------------------------------------------------------------------------


class Source:
    """Computes a teacher's answers, block by block, always in batches of the same size.

    Args:
        cfg: SOLVER says how the teacher is run.
        teacher: with its fault, if the study wants one; a permutation of its logits is undone.
        loader: of the training images; whatever it leaves out of their set is answered, too.
        dtype: "fp32" or "fp16".
        parts: what to keep, of :data:`PARTS`; None for logits, pooled features, if the teacher
            has them, and whatever else DISTILLER.TYPE reads.

    Raises:
        ConfigError: the teacher has no such part.
    """

    def __init__(
        self,
        cfg: Config,
        teacher: nn.Module,
        loader: ArrayLoader,
        dtype: str = "fp32",
        parts: Sequence[str] | None = None,
    ) -> None:
        solver, self._device = cfg.SOLVER, resolve_device(cfg.SOLVER.DEVICE)
        self._loader, self._layout = loader.of_whole(), memory_format(cfg, self._device)
        sound, _ = before_permuting(cfg, teacher)
        network: Any = sound.to(self._device).eval()
        network = network.to(memory_format=self._layout)
        bf16 = uses_bf16(solver.AMP, self._device)
        run = FrozenTeacher(network, fold=solver.FOLD_TEACHER, bf16=bf16)
        self._run: Callable[[Tensor], tuple[Tensor, Mapping[str, Any]]] = run
        reads = distiller_dict[cfg.DISTILLER.TYPE].reads_cache
        self._parts = parts or {*PARTS[:2], *reads}
        one = torch.zeros(1, dtype=torch.int64)
        shapes = {name: list(x.shape[1:]) for name, x in self._ask(one, one).items()}
        if lacking := ", ".join(set(parts or ()) - shapes.keys()):
            raise ConfigError(f"{cfg.DISTILLER.TEACHER} has no {lacking} that could be kept")
        way = {
            "fold": bool(solver.FOLD_TEACHER),
            "bf16": bf16,
            "channels_last": self._layout is torch.channels_last,
            "device": self._device.type,
        }
        bound = bound_to(cfg, teacher, loader)
        self.header = Header(**bound, parts=shapes, dtype=dtype, way=way)

    def _ask(self, index: Tensor, variant: Tensor) -> dict[str, Tensor]:
        image = self._loader.views(index, variant)
        logits, features = self._run(image.contiguous(memory_format=_shown(self._layout)))
        found = {"logits": logits}
        # A network of others need not have them.
        if "pooled_feat" in self._parts and "pooled_feat" in features:
            found["pooled_feat"] = features["pooled_feat"]
        if LAST_MAP in self._parts and "feats" in features:
            found[LAST_MAP] = features["feats"][-1]
        return found

    def block(self, number: int) -> Tensor:
        """The answers [R, width] of block ``number``, float32 on the CPU."""
        wanted = self.header.rows_of(number)
        # The last block is filled up with its last row, so that every batch has the same size.
        rows = torch.arange(wanted.start, wanted.start + BLOCK).clamp(max=wanted.stop - 1)
        found = self._ask(rows // self.header.variants, rows % self.header.variants)
        flat = torch.cat([found[name].float().flatten(1) for name in self.header.parts], dim=1)
        return flat[: len(wanted)].cpu()

    def fill(
        self,
        file: CacheFile,
        shard: tuple[int, int] | None = None,
        done: Callable[[int], None] = lambda blocks: None,
    ) -> None:
        """Write what ``file`` lacks; other processes may do the same at the same time.

        Args:
            shard: (i, n) leaves all blocks but every n-th from the i-th on to other processes;
                None shares them with whoever works on the same file.
            done: is told the number of finished blocks, now and then.
        """
        first, step = shard or (0, 1)
        while True:
            missing = [b for b in range(first, file.header.blocks, step) if not file.checksums[b]]
            if not missing:
                return
            before = len(missing)
            for block in missing:
                with file.claimed(block) as mine:
                    if mine and not file.checksums[block]:
                        file.write(block, self.block(block))
                        before -= 1
                        done(file.header.blocks - file.missing)
            if before == len(missing):
                time.sleep(_WAIT_SECONDS)  # others are at what is left
                done(file.header.blocks - file.missing)


def _shown(layout: torch.memory_format) -> torch.memory_format:
    return torch.contiguous_format if layout is torch.preserve_format else layout


def source_of(cfg: Config, dtype: str = "fp32", parts: Sequence[str] | None = None) -> Source:
    """The :class:`Source` of a configuration's teacher and training images.

    Args:
        dtype, parts: as there.

    Raises:
        ConfigError: the run has no teacher, or its images too many variants.
    """
    if cfg.DISTILLER.TYPE == "NONE":
        raise ConfigError("DISTILLER.TYPE NONE has no teacher; give the configuration of a method")
    loader, _, _, num_classes = get_dataset(cfg)
    loader = array_loader(cfg, loader)
    return Source(cfg, build_teacher(cfg, num_classes, loader), loader, dtype, parts)


def complete(cfg: Config) -> None:
    """Write what the existing file DISTILLER.TEACHER_CACHE still lacks, if anything.

    Processes that do so at the same time share the work.
    """
    path = Path(cfg.DISTILLER.TEACHER_CACHE)
    if not path.exists():
        return  # said where it is to be read
    file = CacheFile(path)
    dtype, parts, missing = file.header.dtype, tuple(file.header.parts), file.missing
    file.close()
    if missing:
        log(f"{path}: {missing} blocks of the teacher's answers are to be computed first")
        source = source_of(cfg, dtype, parts)
        with_file = open_or_create(path, source.header)
        seldom = Seldom()

        def tell(blocks: int) -> None:
            if seldom.due():
                log(f"{blocks} of {source.header.blocks} blocks")

        try:
            source.fill(with_file, done=tell)
        finally:
            with_file.close()


# ---- reading them ----------------------------------------------------------------------------


class _Features(dict):
    """A cached answer's features; one that is not kept is a ConfigError."""

    def __missing__(self, key: str) -> NoReturn:
        raise ConfigError(
            f"{KEY} holds the teacher's {', '.join(map(repr, self))} only, but this method asks "
            f"for {key!r}; leave the key empty"
        )


class _LastOnly(list):
    """``feats`` of which only the last map is known."""

    def __getitem__(self, place: Any) -> Any:
        if place in (-1, slice(-1, None)):
            return super().__getitem__(place)
        raise ConfigError(
            f"{KEY} holds the teacher's last map only, but this method asks for others; leave the "
            "key empty"
        )


class FileRecall:
    """Turns rows of a file into a teacher's answers, as a distiller asks (``recall``).

    Args:
        file: complete, and of this teacher and these images.
        order: of the logits, [C] on the device of the rows; None for the file's.
    """

    def __init__(self, file: CacheFile, order: Tensor | None = None) -> None:
        self._file, self._order = file, order
        self.id = file.id

    def __call__(self, rows: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
        """(logits [B, C], features) of rows [B, width] of the file."""
        answers = self._file.split(rows)
        logits = answers.pop("logits")
        if self._order is not None:
            logits = logits.index_select(1, self._order)
        features = _Features(answers)
        if LAST_MAP in answers:
            features["feats"] = _LastOnly([features.pop(LAST_MAP)])
        return logits, features


def attach_cache(cfg: Config, distiller: Distiller, train_loader: Loader) -> None:
    """Let ``distiller`` read its teacher's answers from DISTILLER.TEACHER_CACHE, if it is set.

    Raises:
        DataError: the file is not complete, or of another teacher, other images or another
            augmentation.
        ConfigError: the images have too many variants.
    """
    path, teacher = cfg.DISTILLER.TEACHER_CACHE, distiller.teacher
    if not path or teacher is None:
        return
    loader = array_loader(cfg, train_loader)
    file = CacheFile(path)
    have = file.header
    want = Header(
        **bound_to(cfg, teacher, loader), parts=have.parts, dtype=have.dtype, way=have.way
    )
    if words := differences(have, want):
        raise DataError(f"{KEY} {path} is {', '.join(words)}; make one with tools/cache_teacher.py")
    lacking = [name for name in distiller.reads_cache if name not in have.parts]
    if lacking:
        raise DataError(
            f"{KEY} {path} lacks the teacher's {', '.join(lacking)}, which "
            f"{type(distiller).__name__} needs; make one with this configuration"
        )
    if missing := file.missing:
        raise DataError(
            f"{KEY} {path} is not complete: {missing} of {have.blocks} blocks are missing; "
            f"python tools/cache_teacher.py --cfg ... --out {path} goes on with it"
        )
    _, order = before_permuting(cfg, teacher)
    if order is not None:
        order = order.to(resolve_device(cfg.SOLVER.DEVICE))
    distiller.recall = FileRecall(file, order)
    loader.answers = file
