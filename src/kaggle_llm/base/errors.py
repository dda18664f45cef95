"""Errors as a user sees them. Standard library only.

An error that this package raises is one line on stderr, its traceback in the run's folder; an error in a competitor's
own code (an experiment's folder, a competition's module) shows its traceback. With --debug every error does.
"""

from __future__ import annotations

import sys
import traceback
from functools import partial
from pathlib import Path
from types import TracebackType

from kaggle_llm.base.folders import is_competition

PACKAGE = Path(__file__).parents[1]
TRACEBACK_FILE = "error.txt"


def report_errors(debug: bool, folder: Path | None = None) -> None:
    """From here on `print_error` prints uncaught errors; with `debug` Python does. folder: the run's, for error.txt."""
    sys.excepthook = sys.__excepthook__ if debug else partial(print_error, folder)


def print_error(
    folder: Path | None, error_type: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(error_type, KeyboardInterrupt):
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return
    if is_own_code(trace):
        traceback.print_exception(error_type, error, trace)
        return
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    name = error_type.__name__
    print(f"error: {message or name} ({name}; {keep_traceback(folder, error)})", file=sys.stderr)


def is_own_code(trace: TracebackType | None) -> bool:
    """Whether the last frame outside of libraries lies in an experiment or in a competition's module."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace)]
    ours = [path for path in files if path.is_relative_to(PACKAGE) or path.parent.parent.name == "exp"]
    return bool(ours) and (not ours[-1].is_relative_to(PACKAGE) or is_competition(ours[-1]))


def keep_traceback(folder: Path | None, error: BaseException) -> str:
    """Write the traceback to the run's error.txt; returns where to find it, for the message."""
    if folder is None or not folder.is_dir():
        return "--debug shows where"
    (folder / TRACEBACK_FILE).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"where: {folder.parent.name}/{folder.name}/{TRACEBACK_FILE}, or --debug"
