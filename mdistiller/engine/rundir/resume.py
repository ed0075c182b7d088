"""Whether a checkpoint continues the run that a configuration describes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from mdistiller.config import CFG, Config, used_groups
from mdistiller.config.names import affects_result
from mdistiller.distillers import Distiller
from mdistiller.errors import CheckpointError, ConfigError


def relevant_config(cfg: Config, processes: int = 1) -> dict[str, Any]:
    """What the result of a run depends on: keys of ``cfg`` by their dotted names, and PROCESSES.

    Args:
        processes: how many train together (torchrun).
    """
    keys = {key: value for key, value in used_groups(cfg).leaves().items() if affects_result(key)}
    return {**keys, "PROCESSES": processes}


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two :func:`relevant_config`, as "KEY: a -> b".

    A key that one of the two does not have (a later version's) counts with its default.
    """
    defaults = CFG.leaves()
    changes = []
    for key in sorted({*old, *new}):
        before, after = (values.get(key, defaults.get(key)) for values in (old, new))
        if before != after:
            changes.append(f"{key}: {before} -> {after}")
    return changes


def refuse_changes(old: dict[str, Any], new: dict[str, Any], allow: bool) -> list[str]:
    """The :func:`config_changes`, if there are none or ``allow`` says that they are meant.

    Raises:
        ConfigError: there are some; lists them.
    """
    changes = config_changes(old, new)
    if changes and not allow:
        raise ConfigError(
            f"the checkpoint was trained with another configuration: {', '.join(changes)}; "
            "undo this, train under another EXPERIMENT.NAME, or add --allow-changes"
        )
    return changes


# With one of these changed, another batch would follow than the one that is due.
_BATCHES = ("SOLVER.BATCH_SIZE", "EXPERIMENT.SEED", "PROCESSES", "DATASET.")


def refuse_changes_within_an_epoch(changes: list[str], epoch: int, step: int) -> None:
    """Refuse :func:`config_changes` of what decides on the batches, within an epoch.

    Args:
        epoch, step: where the checkpoint is; ``step`` steps of ``epoch`` are done.

    Raises:
        ConfigError: there are such changes.
    """
    found = [change for change in changes if change.startswith(_BATCHES)]
    if found:
        raise ConfigError(
            f"the checkpoint is after step {step} of epoch {epoch}, within which "
            f"{', '.join(found)} cannot be taken over: images would be left out or seen twice; "
            "train to the end of the epoch as before, or continue from that of an earlier one "
            "(copy epoch_N to latest)"
        )


def teacher_reference(cfg: Config, distiller: Distiller) -> dict[str, str] | None:
    """Name, file and SHA-256 of the weights of a run's teacher; None without one.

    With "cache", the id of the file that its answers come from, if they do.
    """
    if distiller.teacher is None:
        return None
    found = {
        "name": cfg.DISTILLER.TEACHER,
        "path": cfg.DISTILLER.TEACHER_CKPT,
        "sha256": weights_hash(distiller.teacher),
    }
    return found if distiller.recall is None else {**found, "cache": distiller.recall.id}


def weights_hash(network: nn.Module) -> str:
    """SHA-256 (hexadecimal) over the names, shapes, types and bytes of a network's state."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_other_teacher(old: dict[str, str] | None, new: dict[str, str] | None) -> None:
    """Raises CheckpointError if two :func:`teacher_reference` have different weights or answers."""
    if (old and old["sha256"]) == (new and new["sha256"]):
        before, now = ((r or {}).get("cache", "") for r in (old, new))
        if before == now:
            return
        ways = (f"read from the cache {id[:12]}" if id else "computed" for id in (before, now))
        raise CheckpointError(
            f"the teacher's answers were {next(ways)} up to the checkpoint and would now be "
            f"{next(ways)}; set DISTILLER.TEACHER_CACHE as it was, or train under another "
            "EXPERIMENT.NAME"
        )
    raise CheckpointError(
        f"the checkpoint was trained with another teacher ({_describe(old)}) than this "
        f"configuration's ({_describe(new)}); set DISTILLER.TEACHER_CKPT to the former's file, "
        "or train under another EXPERIMENT.NAME"
    )


def _describe(teacher: dict[str, str] | None) -> str:
    if teacher is None:
        return "none"
    where = f" from {teacher['path']}" if teacher["path"] else ""
    return f"{teacher['name']}{where}, SHA-256 {teacher['sha256'][:12]}"
