"""A yacs tree that checks what is merged into it and says what is wrong in one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from mdistiller.errors import ConfigError
from mdistiller.registry import nearest

BASE_KEY = "_BASE_"
_SOURCES = "__sources__"

# Whole numbers by default, but quantities for which a fraction makes sense.
_REAL_VALUED = {"KD.TEMPERATURE", "AT.P", "RKD.DISTANCE_WEIGHT", "RKD.ANGLE_WEIGHT"}


class Config(CfgNode):
    """A ``CfgNode`` with inheritance between files, typed coercion and clear errors.

    Differs from yacs in what :meth:`merge_from_file` and :meth:`merge_from_list` accept
    (an integer where a float is expected, ``_BASE_``) and in their errors, which are all
    :class:`~mdistiller.errors.ConfigError` with the key, the source and the nearest key.
    """

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file, after the file that its ``_BASE_`` key names, if any."""
        for path, tree in _inheritance_chain(Path(cfg_filename)):
            self._merge_items(_flatten(tree), str(path))

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Merge ``[KEY, VALUE, KEY, VALUE, ...]``, as given on a command line."""
        if len(cfg_list) % 2:
            raise ConfigError(
                f"command line: overrides come in pairs KEY VALUE, but {cfg_list[-1]!r} "
                "has no partner"
            )
        pairs = zip(cfg_list[0::2], cfg_list[1::2], strict=True)
        self._merge_items(((str(k), v) for k, v in pairs), "command line")

    def leaves(self) -> dict[str, Any]:
        """All values by their dotted keys."""
        return dict(_flatten(self))

    def source_of(self, key: str) -> str | None:
        """The file (or "command line") that last set ``key``; None for a default."""
        return self.__dict__.get(_SOURCES, {}).get(key)

    def _merge_items(self, items: Iterator[tuple[str, Any]], source: str) -> None:
        known = self.leaves()
        for key, value in items:
            if key not in known:
                raise ConfigError(f"{source}: {_describe_unknown(key, known)}")
            *parents, leaf = key.split(".")
            node = self
            for parent in parents:
                node = node[parent]
            try:
                node[leaf] = coerce(key, value, known[key])
            except ValueError as error:
                raise ConfigError(f"{source}: {error}") from None
            # Beside the items, so that it is no key; a copy takes it along.
            self.__dict__.setdefault(_SOURCES, {})[key] = source


def _describe_unknown(key: str, known: dict[str, Any]) -> str:
    inside = [k for k in known if k.startswith(key + ".")]
    if inside:
        return f"{key} is a group of keys, not a value; it holds {', '.join(inside)}"
    guess = nearest(key, known)
    if guess is None:
        # A right group with a wrong leaf: the leaf decides.
        leaf = {k.rpartition(".")[2]: k for k in known}
        found = nearest(key.rpartition(".")[2], leaf)
        guess = leaf[found] if found else None
    hint = f"did you mean {guess}?" if guess else "docs/config.md lists the keys"
    return f"unknown key {key}; {hint}"


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, dict):
            yield f"{prefix}{key}", value


def _inheritance_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files to merge in this order: the root of the inheritance first, ``path`` last."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: set[Path] = set()
    while True:
        if path.resolve() in seen:
            raise ConfigError(f"{path}: {BASE_KEY} leads back to this file")
        seen.add(path.resolve())
        tree = _read_yaml(path)
        base = tree.pop(BASE_KEY, None)
        chain.insert(0, (path, tree))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{path}: {BASE_KEY} must name one file, not {base!r}")
        path = path.parent / base


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad syntax"
        raise ConfigError(f"{path}: not valid YAML{where} ({problem})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


def coerce(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``, or ValueError naming ``key``, both types and value.

    Text is read as a Python literal where the default is no text, so that a command line and
    YAML's ``1e-3`` (which YAML takes for text) mean what they say. Whole numbers become floats
    where a float is expected; floats become integers where nothing is lost.
    """
    raw = value
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            if isinstance(default, bool) and value.strip().lower() in ("true", "false"):
                value = value.strip().lower() == "true"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(default, int):
        if is_number and value == value and abs(value) != float("inf") and value == int(value):
            return int(value)
        if is_number and key in _REAL_VALUED:
            return float(value)
    elif isinstance(default, float):
        if is_number:
            return float(value)
    elif isinstance(default, str):
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if value is False and default == "off":  # how YAML reads a bare off
            return "off"
    elif (
        isinstance(default, (list, tuple))
        and isinstance(value, (list, tuple))
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    ):
        return type(default)(coerce(key, v, default[0] if default else 0) for v in value)
    raise ValueError(f"{key} expects {_type_name(default)}, not {type(raw).__name__} {raw!r}")


def _type_name(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return f"a {type(default).__name__} of whole numbers"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[
        type(default)
    ]
