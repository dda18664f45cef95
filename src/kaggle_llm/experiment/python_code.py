"""Values as Python code, formatted by ruff as this repository is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

LINE = 120


class Code(str):
    """A text that is code, such as the name of a constant."""


def to_code(value: Any) -> Code:
    """A string, a number, a tuple, a dict, or Code, which stays as it is."""
    if isinstance(value, Code):
        return value
    if isinstance(value, Mapping):
        return Code(f"{{{', '.join(f'{to_code(key)}: {to_code(item)}' for key, item in value.items())}}}")
    if isinstance(value, tuple) and len(value) > 1:
        return Code(f"({', '.join(map(to_code, value))})")
    return Code(f"({to_code(value[0])},)" if isinstance(value, tuple) and value else repr(value))


def to_call(value: Any, named: Mapping[str, Code]) -> Code:
    """A dataclass as the call that makes it, without fields that have their default. named: written by a name."""
    items = []
    for field in fields(value):
        own = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if own != default:
            code = named.get(field.name) or to_code(own)
            items.append(code if default is MISSING else f"{field.name}={code}")
    return Code(f"{type(value).__name__}({', '.join(items)})")


def format_code(code: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(LINE), "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout
