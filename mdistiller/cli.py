"""What all command-line tools share: how they end when something is wrong."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from .errors import MdistillerError


def exit_on_error(main: Callable[..., None]) -> Callable[..., None]:
    """Decorator for a tool's ``main``: a user's error becomes one line and an exit status.

    Ctrl-C ends with status 130; warnings are shown as one line each. A reader of the output that
    has gone (``| head``) ends the tool silently with status 141, as it ends the shell's own tools.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        try:
            main(*args, **kwargs)
            # Else the interpreter finds out that the reader has gone, after its last handler.
            sys.stdout.flush()
        except MdistillerError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    return wrapped


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)
