"""Loading a run's configuration, and finding the folder of a run that has begun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mdistiller.errors import ConfigError

from .cfg import check_values, naming_sources, read_cfg
from .names import identity, run_name
from .node import COMMAND_LINE, Config

CONFIG_FILE = "config.yaml"
_NAME = re.compile(r"^EXPERIMENT:\n(?:  .*\n)*?  NAME: *(.*)$", re.MULTILINE)


def load_cfg(cfg_file: str | Path, opts: Sequence[Any] = ()) -> Config:
    """The defaults, then ``cfg_file``, then the overrides ``opts`` (KEY, VALUE, ...); frozen.

    EXPERIMENT.NAME is then the name of the run's folder, so that the ``config.yaml`` that the
    run leaves leads back to it: that of a run which has begun with this configuration, or
    :func:`~.names.run_name`.

    Raises:
        ConfigError: see :class:`~mdistiller.config.node.Config`.
    """
    cfg = read_cfg(cfg_file, opts)
    with naming_sources(cfg):
        check_values(cfg, "EXPERIMENT.")  # before folders are made of them
    if not _is_in_place(cfg, Path(cfg_file)):
        name = run_name(cfg)
        cfg.name_run(name if cfg.is_named() else _begun(cfg, name))
    cfg.freeze()
    return cfg


# How a run's images were prepared, and which of them it was validated on.
_OF_IMAGES = ("ROOT", "IMAGE_SIZE", "MEAN", "STD", "HOLDOUT", "VALIDATE", "SUBSET_SEED")


def images_beside(ckpt: str | Path, dataset: str) -> list[Any]:
    """Overrides (KEY, VALUE, ...) with the images of the run that left the checkpoint ``ckpt``.

    Nothing where its ``config.yaml`` does not lie beside it, or names another data set.
    """
    file = Path(ckpt).expanduser().parent / CONFIG_FILE
    if not str(ckpt) or not file.is_file():
        return []
    cfg = read_cfg(file)
    if dataset != cfg.DATASET.TYPE:
        return []
    return [x for key in _OF_IMAGES for x in (f"DATASET.{key}", cfg.DATASET[key])]


def _is_in_place(cfg: Config, cfg_file: Path) -> bool:
    """Whether ``cfg_file`` is what a run of this configuration left; names ``cfg`` after it.

    Where its folder has been moved, the run goes on where it lies now.
    """
    folder = Path(os.path.abspath(cfg_file)).parent
    keys = ("LOG.PREFIX", "EXPERIMENT.PROJECT", "EXPERIMENT.NAME")
    if (
        cfg_file.name != CONFIG_FILE
        or not (folder / "latest").exists()
        or any(cfg.source_of(key) == COMMAND_LINE for key in keys)
        or identity(read_cfg(cfg_file)) != identity(cfg)
    ):
        return False
    project = Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT
    if Path(os.path.abspath(project)) != folder.parent:
        cfg.put("LOG.PREFIX", str(folder.parent.parent))
        cfg.put("EXPERIMENT.PROJECT", folder.parent.name)
    cfg.name_run(folder.name)
    return True


def _begun(cfg: Config, name: str) -> str:
    """``name``, or that of a run which an earlier version named by the overrides as typed."""
    project = Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT
    if (project / name).exists():
        return name
    base = (cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG).replace("/", "_")
    wanted = identity(cfg)
    found = [
        folder
        for folder in _runs(project)
        if folder.name.startswith(base)
        and ":" in folder.name[len(base) :]
        and _own_name(folder) != folder.name
        and _identity_of_run(folder) == wanted
    ]
    return max(found, key=lambda f: (f / CONFIG_FILE).stat().st_mtime).name if found else name


def runs_like(cfg: Config) -> list[Path]:
    """The folders of the project, but for the run's own, that hold the same configuration."""
    project = Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT
    own, wanted = run_name(cfg), identity(cfg)
    return [f for f in _runs(project) if f.name != own and _identity_of_run(f) == wanted]


def _runs(project: Path) -> Iterator[Path]:
    folders = sorted(project.iterdir()) if project.is_dir() else []
    return (folder for folder in folders if (folder / CONFIG_FILE).is_file())


def _own_name(folder: Path) -> str | None:
    """EXPERIMENT.NAME in a run's folder, without the time that reading all of YAML takes."""
    found = _NAME.search((folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace"))
    return found and found[1].strip("'\"")


def _identity_of_run(folder: Path) -> str | None:
    try:
        return identity(read_cfg(folder / CONFIG_FILE))
    except ConfigError:
        return None
