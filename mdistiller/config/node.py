"""A yacs tree that checks what is merged into it and says what is wrong in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from mdistiller.errors import ConfigError
from mdistiller.registry import nearest

from .coerce import coerce
from .imports import IMPORTS, import_methods
from .table import TABLE
from .yaml_file import read_with_bases

COMMAND_LINE = "command line"
_SOURCES = "__sources__"
_FROM_FILES = "__from_files__"
_NAMED = "__named__"
NAME = "EXPERIMENT.NAME"


class Config(CfgNode):
    """A ``CfgNode`` with inheritance between files, typed coercion and clear errors.

    Differs from yacs in what :meth:`merge_from_file` and :meth:`merge_from_list` accept
    (an integer where a float is expected, ``_BASE_``, EXPERIMENT.IMPORTS) and in their errors,
    which are all :class:`~mdistiller.errors.ConfigError` with the key, the source and the
    nearest key.
    """

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file, after the file that its ``_BASE_`` key names, if any."""
        layers = read_with_bases(Path(cfg_filename))
        for path, items in layers:
            for key, value in items:
                if key == IMPORTS:
                    self._import(key, value, str(path), path.parent)
        for path, items in layers:
            self._merge_items(items, str(path))

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Merge ``[KEY, VALUE, KEY, VALUE, ...]``, as given on a command line."""
        if len(cfg_list) % 2:
            raise ConfigError(
                f"{COMMAND_LINE}: overrides come in pairs KEY VALUE, but {cfg_list[-1]!r} "
                "has no partner"
            )
        items = [(str(k), v) for k, v in zip(cfg_list[0::2], cfg_list[1::2], strict=True)]
        for key, value in items:
            if key == IMPORTS:
                self._import(key, value, COMMAND_LINE, None)
        self._merge_items(items, COMMAND_LINE)

    def leaves(self) -> dict[str, Any]:
        """All values by their dotted keys."""
        return dict(_flatten(self))

    def source_of(self, key: str) -> str | None:
        """The file (or "command line") that last set ``key``; None for a default."""
        return self.__dict__.get(_SOURCES, {}).get(key)

    def overrides(self) -> dict[str, Any]:
        """What the command line changed: the keys whose values differ from those of the files."""
        before, now = self.__dict__.get(_FROM_FILES, {}), self.leaves()
        return {key: now[key] for key in sorted(before) if now[key] != before[key]}

    def is_named(self) -> bool:
        """Whether EXPERIMENT.NAME is the whole name of the run's folder."""
        given = self.source_of(NAME) == COMMAND_LINE and bool(self.EXPERIMENT.NAME)
        return given or bool(self.__dict__.get(_NAMED))

    def name_run(self, name: str) -> None:
        """Make EXPERIMENT.NAME the whole name of the run's folder."""
        self.put(NAME, name)
        self.__dict__[_NAMED] = True

    def put(self, key: str, value: Any) -> None:
        """Set one value by its dotted key, of the right type, whether frozen or not."""
        *parents, leaf = key.split(".")
        node = self
        for parent in parents:
            node = node.setdefault(parent, type(self)())
        dict.__setitem__(node, leaf, value)

    def _merge_items(self, items: Iterable[tuple[str, Any]], source: str) -> None:
        known = self.leaves()
        for key, value in items:
            if key not in known or key not in TABLE:
                raise ConfigError(f"{source}: {_describe_unknown(key, known)}")
            if key == IMPORTS:
                continue
            try:
                new = coerce(key, value, TABLE[key])
            except ValueError as error:
                raise ConfigError(f"{source}: {error}") from None
            if source == COMMAND_LINE:
                self.__dict__.setdefault(_FROM_FILES, {}).setdefault(key, known[key])
            self.put(key, new)
            # Beside the items, so that it is no key; a copy takes it along.
            self.__dict__.setdefault(_SOURCES, {})[key] = source

    def _import(self, key: str, value: Any, source: str, folder: Path | None) -> None:
        """Import methods of the user's own; what they declare becomes part of this tree."""
        try:
            names = coerce(key, value, TABLE[key])
            found = import_methods(names, folder)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
        self.put(key, found)
        self.__dict__.setdefault(_SOURCES, {})[key] = source
        self.add_missing()

    def add_missing(self) -> None:
        """Add the settings that have been declared since this tree was made."""
        known = self.leaves()
        for key, setting in TABLE.items():
            if key not in known:
                self.put(key, setting.value())


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
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
