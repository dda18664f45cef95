"""Errors as a user sees them. Standard library only.

What this package refuses is one line on stderr, its traceback in the run's folder; what somebody's own code raises
(an experiment's folder, a competition's module) shows its traceback. With --debug every error does.
"""

from __future__ import annotations

import sys
import traceback
from functools import partial
from pathlib import Path
from types import TracebackType

from kaggle_llm.base.folders import is_competition

PACKAGE = Path(__file__).parents[1]
FILE = "error.txt"


def report_errors(debug: bool, folder: Path | None = None) -> None:
    """From here on, an error that nobody catches is printed by `print_error`; with `debug` Python prints it.

    folder: of the run, for error.txt.
    """
    sys.excepthook = sys.__excepthook__ if debug else partial(print_error, folder)


def print_error(
    folder: Path | None, kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return
    if is_own_code(where):
        traceback.print_exception(kind, error, where)
        return
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {message or kind.__name__} ({kind.__name__}; {keep_traceback(folder, error)})", file=sys.stderr)


def is_own_code(where: TracebackType | None) -> bool:
    """Whether the last frame that is no library's lies in an experiment or in a competition's module."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(where)]
    ours = [path for path in files if path.is_relative_to(PACKAGE) or path.parent.parent.name == "exp"]
    return bool(ours) and (not ours[-1].is_relative_to(PACKAGE) or is_competition(ours[-1]))


def keep_traceback(folder: Path | None, error: BaseException) -> str:
    """Where to read it."""
    if folder is None or not folder.is_dir():
        return "--debug shows where"
    (folder / FILE).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"where: {folder.name}/{FILE}, or --debug"
