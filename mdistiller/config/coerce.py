"""Values as text, YAML or Python give them, in the type of their setting."""

from __future__ import annotations

import ast
import os
import re
from typing import Any

from .setting import Setting


class YamlText(str):
    """A plain (unquoted) YAML scalar as it is written.

    YAML 1.1 reads 010 as 8, 12:30 as 750 and 1.10 as 1.1. Only a setting's type tells what was
    meant, so both are kept.

    Attributes:
        typed: what YAML takes it for.
    """

    typed: Any

    def __new__(cls, text: str, typed: Any) -> YamlText:
        self = super().__new__(cls, text)
        self.typed = typed
        return self


def coerce(key: str, value: Any, setting: Setting) -> Any:
    """``value`` in the type of ``setting``, or ValueError naming ``key``, type and value.

    Text is read as a Python literal where the setting is no text, so that a command line and
    YAML's ``1e-3`` (which YAML takes for text) mean what they say. Whole numbers become floats
    where a float is expected; floats become integers where nothing is lost.
    """
    if setting.kind == "texts":
        return _texts(key, value)
    default = setting.default
    if isinstance(default, str):
        return _text(key, value, setting)
    found = _literal(value, isinstance(default, bool))
    if isinstance(default, bool):
        if isinstance(found, bool):
            return found
    elif isinstance(default, (list, tuple)):
        if isinstance(found, (list, tuple)):
            element = Setting(default[0] if default else 0, kind=setting.kind)
            return type(default)(coerce(key, v, element) for v in found)
    elif isinstance(found, (int, float)) and not isinstance(found, bool):
        if isinstance(default, float):
            return float(found)
        if found == found and abs(found) != float("inf") and found == int(found):
            return int(found)
        if setting.kind == "real":
            return float(found)
    raise ValueError(f"{key} expects {_type_name(default)}, not {_shown(value)}")


def _literal(value: Any, truth: bool) -> Any:
    """What a text stands for, if it is a Python literal; anything else as it is."""
    if not isinstance(value, str):
        return value
    typed = getattr(value, "typed", None)
    if isinstance(typed, bool):
        return typed
    text = value.strip()
    if truth and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _text(key: str, value: Any, setting: Setting) -> str:
    missing = value is None or getattr(value, "typed", "") is None
    if missing or isinstance(value, (bool, list, tuple, dict)):
        raise ValueError(f"{key} expects text, not {_shown(value)}")
    text = str(value)
    return _path(key, text) if setting.is_path else text


def _path(key: str, text: str) -> str:
    """``text`` with a leading ``~`` and variables of the environment in it, as a shell has them."""
    expanded = os.path.expandvars(os.path.expanduser(text))
    if expanded.startswith("~"):
        raise ValueError(f"{key} {text} names no user's folder; write ./{text} for such a name")
    if unknown := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise ValueError(f"{key} {text}: {unknown[0]} is not set in the environment; set it")
    return expanded


def _texts(key: str, value: Any) -> list[str]:
    if isinstance(value, str) and getattr(value, "typed", "") is not None:
        found = _literal(value, False) if value.strip().startswith(("[", "(")) else value
        if isinstance(found, str) and found.strip()[:1] + found.strip()[-1:] == "[]":
            # As YAML has it, names without quotes.
            found = [part.strip().strip("'\"") for part in found.strip()[1:-1].split(",")]
        value = [found] if isinstance(found, str) else found
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) and v for v in value):
        return [str(v) for v in value]
    raise ValueError(f"{key} expects a list of texts, not {_shown(value)}")


def _shown(value: Any) -> str:
    typed = getattr(value, "typed", value)
    if typed is None:
        return "nothing (null)"
    # Where Python reads another number than YAML, the text is shown as it is written.
    if isinstance(typed, (int, float)) and _literal(value, False) == typed:
        return f"{type(typed).__name__} {value}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} [{', '.join(map(str, value))}]"[:200]
    return (
        f"{type(value).__name__} {value!r}"[:200]
        if type(value) is not YamlText
        else (f"str {str(value)!r}"[:200])
    )


def _type_name(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        numbers = "numbers" if default and isinstance(default[0], float) else "whole numbers"
        return f"a {type(default).__name__} of {numbers}"
    return {bool: "True or False", int: "a whole number", float: "a number"}[type(default)]
