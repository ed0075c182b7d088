"""What a run is: the identity of its configuration, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cfg import used_groups
from .node import Config
from .table import TABLE

# Bytes of the part of a folder's name that says what the command line changed.
_LONGEST_CHANGES = 100
_DIGITS = 8
# The folder of a planned run, e.g. teacher-resnet20-1a2b3c4d/.
_MADE_BY = re.compile(rf"^.*-([0-9a-f]{{{_DIGITS}}})/")


def affects_result(key: str) -> bool:
    """Whether the numbers of a run depend on the setting ``key``; yes for one of no version."""
    return key not in TABLE or TABLE[key].affects_result


def relevant(leaves: dict[str, Any]) -> dict[str, Any]:
    """The settings on which a result depends, values as JSON gives them back.

    Of a file of another run (the teacher, the weights to replay) its last folder and its own
    name stand for its content: a planned run's folder is named by its identity.

    Args:
        leaves: settings by dotted key, as of ``used_groups(cfg).leaves()`` or of a record.
    """
    found: dict[str, Any] = {}
    for key, value in leaves.items():
        if key in TABLE and TABLE[key].kind == "input":
            found[key] = "/".join(Path(value).parts[-2:])
        elif affects_result(key):
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def identity_settings(leaves: dict[str, Any]) -> dict[str, Any]:
    """:func:`relevant` without what is at its default, sorted by key.

    So a setting that a later version adds does not make every earlier run another one. Of a file
    in a folder that the experiment runner has named only the hash at the end of that name counts.
    """
    return {
        key: _MADE_BY.sub(r"\1/", value) if key in TABLE and TABLE[key].kind == "input" else value
        for key, value in sorted(relevant(leaves).items())
        if not _is_first_default(key, value)
    }


def _is_first_default(key: str, value: Any) -> bool:
    """Whether ``value``, as JSON gives it back, is the default of the first version that had it."""
    if key not in TABLE:
        return False
    setting = TABLE[key]
    return bool(value == _plain(setting.default if setting.first is None else setting.first))


def identity(cfg: Config) -> str:
    """What a configuration trains, as eight hexadecimal digits: equal for equal results.

    A hash of :func:`identity_settings` of the groups that the run uses. Values are those of the
    resolved configuration, so that neither the order nor the spelling (``1e-1``, ``0.1``) of
    overrides counts, nor where files lie or how the run is called. A record's settings have it
    by :func:`identity_of`.
    """
    return identity_of(used_groups(cfg).leaves())


def identity_of(leaves: dict[str, Any]) -> str:
    """:func:`identity` of settings by dotted key (as a record keeps them)."""
    return hash_of(identity_settings(leaves))


def hash_of(settings: dict[str, Any]) -> str:
    """Eight hexadecimal digits of the SHA-256 of settings by key."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def run_name(cfg: Config) -> str:
    """The name of a run's folder: EXPERIMENT.NAME (or TAG) and what the command line changes.

    A configuration that :func:`~.load.load_cfg` gave has its name. The changes are those of the
    resolved values against the YAML files', sorted by key, as
    KEY:VALUE joined by commas, without those on which the result does not depend. Where they
    are long, their beginning and a hash of all. An EXPERIMENT.NAME on the command line is the
    whole name.
    """
    base = (cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG).replace("/", "_")
    if cfg.is_named():
        return base
    changes = {k: v for k, v in cfg.overrides().items() if affects_result(k)}
    return base + described(changes)


def described(settings: dict[str, Any]) -> str:
    """Settings as a part of a file name: readable, and short by a hash where need be."""
    text = ",".join(f"{key}:{_shown(value)}" for key, value in sorted(settings.items()))
    text = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)
    raw = text.encode()
    if len(raw) <= _LONGEST_CHANGES:
        return text
    return raw[: _LONGEST_CHANGES - _DIGITS - 1].decode(errors="ignore") + "~" + hash_of(settings)


def _shown(value: Any) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, (list, tuple)) else str(value)


def run_names(cfgs: Sequence[Config]) -> list[str]:
    """:func:`run_name` of several runs, such that different configurations have different ones.

    Two configurations with one folder (an edited copy of a YAML file with the same TAG, one
    EXPERIMENT.NAME for all) are told apart by the settings in which they differ; equal
    configurations keep one name, for they are one run. Give a name on as EXPERIMENT.NAME.
    """
    names = [run_name(cfg) for cfg in cfgs]
    folders: dict[tuple[str, str, str], list[int]] = {}
    for i, cfg in enumerate(cfgs):
        folders.setdefault((cfg.LOG.PREFIX, cfg.EXPERIMENT.PROJECT, names[i]), []).append(i)
    for members in folders.values():
        if len({identity(cfgs[i]) for i in members}) > 1:
            leaves = [relevant(used_groups(cfgs[i]).leaves()) for i in members]
            for i, own in zip(members, leaves, strict=True):
                names[i] += described({k: v for k, v in own.items() if _differs(k, leaves)})
    return names


def _differs(key: str, several: Sequence[dict[str, Any]]) -> bool:
    return any(each.get(key) != several[0].get(key) for each in several)


def experiment_name(cfg: Config) -> str:
    """Where a run's folder lies below LOG.PREFIX: ``<project>/<name>``, see :func:`run_name`."""
    return f"{cfg.EXPERIMENT.PROJECT}/{run_name(cfg)}"
