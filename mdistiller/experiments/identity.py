"""What a run is: the settings that its result depends on, and their hash."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from mdistiller.config import CFG, used_groups
from mdistiller.config.names import affects_result

# Files that a run reads: of their paths counts what they are, not where they lie.
FILES = ("DISTILLER.TEACHER_CKPT", "REPLAY.FILE")

# Values that a missing key stands for where that is no longer its default: the hash of a run
# must not change when a default does.
_FIRST_DEFAULTS: dict[str, Any] = {"CROSSBATCH.ALPHA": 0.5}

_HASH_AT_END = re.compile(r"(?:.*-)?([0-9a-f]{8})")


def settings_of(cfg: Any) -> dict[str, Any]:
    """The settings that a run's result depends on, by dotted key, as JSON has them.

    All that the run uses, but for where files lie, how things are called and what is logged. Of
    a file that it reads the last folder and the name count.
    """
    found = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in used_groups(cfg).leaves().items()
        if affects_result(key) or key in FILES
    }
    for key in FILES:
        if key in found:
            found[key] = "/".join(PurePosixPath(found[key]).parts[-2:])
    return found


def identity_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Of :func:`settings_of` what tells runs apart.

    A key at its first default is left out, so that a key that a later version adds does not make
    every earlier run another one. A file in another run's folder is known by that run's hash.
    """
    found = {k: v for k, v in settings.items() if k not in (d := _first_defaults()) or v != d[k]}
    for key in FILES:
        if key in found:
            *folder, name = found[key].split("/")
            made_by = _HASH_AT_END.fullmatch("/".join(folder))
            found[key] = f"{made_by[1]}/{name}" if made_by else found[key]
    return found


@cache
def _first_defaults() -> dict[str, Any]:
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in CFG.leaves().items()}
    return defaults | _FIRST_DEFAULTS


def hash_of(value: Any) -> str:
    """Eight hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def run_id(settings: dict[str, Any]) -> str:
    """The hash by which a run is known, of :func:`settings_of` its configuration."""
    return hash_of(identity_of(settings))


def identity_hash(cfg: Any) -> str:
    """:func:`run_id` of a configuration."""
    return run_id(settings_of(cfg))
