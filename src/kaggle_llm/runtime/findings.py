"""The result of one check: a name, a level, and a sentence with the way out. Standard library only."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "refused"]


class Finding(NamedTuple):
    name: str
    level: Level
    detail: str
