"""Errors as a user sees them: one line on stderr, the traceback only with --debug. Standard library only."""

from __future__ import annotations

import sys
from types import TracebackType


def report_errors(debug: bool) -> None:
    """From here on, an error that nobody catches is printed by `print_error`; with `debug` Python prints it."""
    sys.excepthook = sys.__excepthook__ if debug else print_error


def print_error(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {message or kind.__name__} ({kind.__name__}; --debug shows where)", file=sys.stderr)
