"""What all command-line tools share: how they end when something is wrong."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mdistiller.console import SteadyStream, steady_output
from mdistiller.errors import MdistillerError, explained


def exit_on_error(main: Callable[..., None]) -> Callable[..., None]:
    """Decorator for a tool's ``main``: a user's error becomes one line and an exit status.

    Ctrl-C ends with status 130; warnings are shown as one line each. An output that fails does
    not stop the tool, but it ends with status 1 then (141 without a word where the reader has gone,
    as after ``| head``), unless it said :func:`mdistiller.console.output_is_optional`.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        with steady_output() as output:
            code: Any = 0
            try:
                main(*args, **kwargs)
            except SystemExit as end:  # argparse's, after --help or a usage error
                code = end.code
            except MdistillerError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(error.exit_code)
            except (MemoryError, RuntimeError, OSError) as error:
                known = explained(error)
                if known is None:
                    raise
                print(f"error: {known}", file=sys.stderr)
                sys.exit(known.exit_code)
            except KeyboardInterrupt:
                print("error: interrupted", file=sys.stderr)
                sys.exit(130)
            output.flush()
            code = code or _status_of(output)
        if code:
            sys.exit(code)

    return wrapped


def _status_of(output: SteadyStream) -> int:
    """The exit status that ``output`` asks for; 141 is that of the shell's own tools."""
    failure = output.failure
    if failure is None or output.optional:
        return 0
    if isinstance(failure, BrokenPipeError):
        return 141
    print(f"error: standard output: {failure.strerror or failure}", file=sys.stderr)
    return 1


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)


class ToolParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that expands a leading ``~`` in what it reads, as a shell would.

    A shell leaves it in ``--out=~/x``, in quotes, and in arguments that a program passes on.
    Overrides of the configuration are left to it: only it knows which of them are paths.
    """

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = sys.argv[1:] if args is None else list(args)
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            if isinstance(value, (str, Path)):
                setattr(found, name, _expanded(value))
            elif isinstance(value, list) and name not in ("opts", "set"):
                setattr(found, name, [_expanded(v) for v in value])
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Of a mistyped flag argparse alone would only say that the right one is missing."""
        flags = [arg.partition("=")[0] for arg in self._given if arg.startswith("--")]
        known = self._option_string_actions
        wrong = [flag for flag in flags if not any(name.startswith(flag) for name in known)]
        if wrong and "required" in message:
            message = f"unrecognized arguments: {' '.join(wrong)}; {message}"
        super().error(message)


def _expanded(value: Any) -> Any:
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def add_imports(parser: argparse.ArgumentParser) -> None:
    """The option of tools that read no configuration, as EXPERIMENT.IMPORTS is in one."""
    parser.add_argument(
        "--imports",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Python files or modules with networks and data sets of your own",
    )
