"""What a check found: a name, a level, and a sentence with the way out. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "refused"]


class Finding(NamedTuple):
    name: str
    level: Level
    detail: str


def is_refused(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "refused" for finding in findings)
