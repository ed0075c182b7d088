"""Errors that a user can act on.

Each carries a message of one line (what is wrong, and what to do) and the exit status
with which a command-line tool ends when it meets it.
"""


class MdistillerError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    exit_code = 1


class ConfigError(MdistillerError, ValueError):
    """An unknown key, a value of the wrong type, or an impossible combination."""

    exit_code = 2


class UnknownNameError(ConfigError, KeyError):
    """A name that is not in a registry."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes, with its line breaks escaped.
        return str(self.args[0]) if self.args else ""


class DataError(MdistillerError):
    """A data set that is missing, damaged, or does not fit the request."""


class CheckpointError(MdistillerError):
    """A checkpoint that is missing, damaged, or does not fit the network."""


class NonFiniteError(MdistillerError, ArithmeticError):
    """A loss or a gradient became NaN or infinite during training."""


class InterruptedRun(MdistillerError):
    """A training that was stopped by a signal; ``exit_code`` is the shells' for it."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
