"""Values as Python code, laid out as the formatter of this repository does it: a line, or an item a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

LINE = 120


@dataclass(frozen=True)
class Code:
    """Code on one line, and how it is broken: what opens it, its items, and what closes it."""

    text: str
    opening: str = ""
    items: tuple[Code, ...] = ()
    closing: str = ""


def quote(text: str) -> str:
    """In double quotes, but where that needs backslashes and single ones do not."""
    return repr(text) if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def to_code(value: Any) -> Code:
    """A string, a number, a tuple, a dict, or Code, which stays as it is."""
    if isinstance(value, Code):
        return value
    if isinstance(value, str):
        return Code(quote(value))
    if isinstance(value, Mapping):
        return bracket("{", [prefix(f"{quote(key)}: ", to_code(item)) for key, item in value.items()], "}")
    if isinstance(value, tuple):
        whole = bracket("(", [to_code(item) for item in value], ")")
        return Code(f"({whole.items[0].text},)") if len(value) == 1 else whole
    return Code(repr(value))


def to_call(value: Any, named: Mapping[str, Code]) -> Code:
    """A dataclass as the call that makes it, without fields that have their default. named: written by a name."""
    items = []
    for field in fields(value):
        own = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if own == default:
            continue
        text = named[field.name] if field.name in named else to_code(own)
        items.append(text if default is MISSING else prefix(f"{field.name}=", text))
    return bracket(f"{type(value).__name__}(", items, ")")


def bracket(opening: str, items: Sequence[Code], closing: str) -> Code:
    text = f"{opening}{', '.join(item.text for item in items)}{closing}"
    return Code(text, opening, tuple(items), closing)


def prefix(start: str, code: Code) -> Code:
    """Code with something in front."""
    return Code(start + code.text, start + code.opening, code.items, code.closing)


def layout(code: Code, indent: str, comma: str = "") -> str:
    """One line where it fits, else a line for each item."""
    line = f"{indent}{code.text}{comma}"
    if len(line) <= LINE or not code.items:
        return line
    inner = [layout(item, f"{indent}    ", ",") for item in code.items]
    return "\n".join([f"{indent}{code.opening}", *inner, f"{indent}{code.closing}{comma}"])
