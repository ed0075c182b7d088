"""Reading YAML: ``_BASE_``, no key twice, and scalars as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mdistiller.errors import ConfigError

from .coerce import YamlText

BASE_KEY = "_BASE_"
_MERGE_TAG = "tag:yaml.org,2002:merge"
# Anchors may refer to themselves; no group of settings lies this deep.
_DEEPEST = 20

Items = list[tuple[str, Any]]


def read_with_bases(path: Path) -> list[tuple[Path, Items]]:
    """The files to merge in this order: the root of the inheritance first, ``path`` last.

    Each with its dotted keys and values.

    Raises:
        ConfigError: a file is missing, no YAML, or has a key twice.
    """
    chain: list[tuple[Path, Items]] = []
    seen: set[Path] = set()
    path = path.expanduser()
    while True:
        if path.resolve() in seen:
            raise ConfigError(f"{path}: {BASE_KEY} leads back to this file")
        seen.add(path.resolve())
        items = _read(path)
        chain.insert(0, (path, [(key, value) for key, value in items if key != BASE_KEY]))
        bases = [value for key, value in items if key == BASE_KEY]
        if not bases:
            return chain
        if not isinstance(bases[0], str) or getattr(bases[0], "typed", "") is None:
            raise ConfigError(f"{path}: {BASE_KEY} must name one file, not {bases[0]!r}")
        path = path.parent / Path(bases[0]).expanduser()


def _read(path: Path) -> Items:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return [(k, list(v) if isinstance(v, list) else v) for k, v in _parsed(path, text)]


# A plan reads the same bases for each of its runs.
@lru_cache(maxsize=256)
def _parsed(path: Path, text: str) -> Items:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad syntax"
        raise ConfigError(f"{path}: not valid YAML{where} ({problem})") from None
    if root is None or (isinstance(root, ScalarNode) and not root.value):
        return []
    if not isinstance(root, MappingNode):
        raise ConfigError(f"{path}: expected keys and values, found a {_kind(root)}")
    return _without_doubles(path, _leaves(path, loader, root))


def _without_doubles(path: Path, leaves: Iterator[tuple[str, Any, int]]) -> Items:
    """Refuses a key that is given both dotted and nested."""
    lines: dict[str, int] = {}
    items: Items = []
    for key, value, line in leaves:
        if key in lines:
            raise _twice(path, key, lines[key], line)
        lines[key] = line
        items.append((key, value))
    return items


def _twice(path: Path, key: str, first: int, second: int) -> ConfigError:
    return ConfigError(
        f"{path}: {key} is given twice, at line {first} and at line {second}, and only one "
        "would count; put both into one"
    )


def _leaves(
    path: Path, loader: yaml.SafeLoader, node: MappingNode, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any, int]]:
    """(dotted key, value, line) of everything below ``node``; empty groups are left out."""
    if depth > _DEEPEST:
        raise ConfigError(f"{path}: {prefix.rstrip('.')[:80]} is nested too deep")
    for key, value in _pairs(path, node, prefix, depth):
        if isinstance(value, MappingNode):
            yield from _leaves(path, loader, value, f"{prefix}{key.value}.", depth + 1)
        else:
            yield f"{prefix}{key.value}", _value(loader, value), key.start_mark.line + 1


def _pairs(path: Path, node: MappingNode, prefix: str, depth: int) -> list[tuple[Node, Node]]:
    """The keys and values of a mapping; those that a merge key ``<<`` brings come first."""
    own: dict[str, tuple[Node, Node]] = {}
    merged: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag == _MERGE_TAG:
            parents = value.value if isinstance(value, SequenceNode) else [value]
            if depth > _DEEPEST or not all(isinstance(p, MappingNode) for p in parents):
                raise ConfigError(f"{path}: << at line {key.start_mark.line + 1} needs a mapping")
            for parent in parents:
                for pair in _pairs(path, parent, prefix, depth + 1):
                    merged.setdefault(pair[0].value, pair)
            continue
        if not isinstance(key, ScalarNode):
            raise ConfigError(f"{path}: the key at line {key.start_mark.line + 1} is no text")
        if key.value in own:
            first = own[key.value][0].start_mark.line + 1
            raise _twice(path, prefix + key.value, first, key.start_mark.line + 1)
        own[key.value] = (key, value)
    return [*(pair for name, pair in merged.items() if name not in own), *own.values()]


def _value(loader: yaml.SafeLoader, node: Node) -> Any:
    """A scalar or a list of them; what lies deeper is for no setting and is told by its kind."""
    if isinstance(node, SequenceNode):
        return [
            _scalar(loader, n) if isinstance(n, ScalarNode) else f"a {_kind(n)}" for n in node.value
        ]
    return _scalar(loader, node)


def _kind(node: Node) -> str:
    return node.tag.rpartition(":")[2]


def _scalar(loader: yaml.SafeLoader, node: Node) -> Any:
    try:
        value = loader.construct_object(node)
    except (ValueError, yaml.YAMLError):  # such as the date 2024-13-45
        value = node.value
    # Quoted, or text anyway.
    return value if isinstance(value, str) else YamlText(node.value, value)
