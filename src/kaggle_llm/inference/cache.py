"""The cache in output/cache/: models' answers and document vectors, for later runs.

Only training and CV read it. Each file has a note beside it, <key>.json: what it belongs to, and when each run used it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table

DAY_SECONDS = 86400.0
SIZE_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class Entry:
    """One cached file, with SQLite's files beside it."""

    note: Path
    model: str
    kind: str
    runs: dict[str, float]
    """Run → time of its last use, seconds since the epoch."""
    bytes: int

    @property
    def used(self) -> float:
        return max(self.runs.values(), default=0.0)

    def remove(self) -> None:
        for path in [*list_beside(self.note), self.note]:
            path.unlink(missing_ok=True)


def open_entry(kind: str, about: dict[str, Any], model: Path, run: str, suffix: str) -> Path:
    """The path of the file described by `about`; notes that `run` uses it. kind: answers or vectors."""
    path = paths.root() / "output" / "cache" / kind / f"{records.hash_json(about)[:32]}{suffix}"
    note = path.with_suffix(".json")
    noted = records.read_json(note) if note.is_file() else {"kind": kind, "model": paths.relative(model), **about}
    noted["runs"] = {**noted.get("runs", {}), run: time.time()}
    records.write_json(note, noted)
    return path


def list_beside(note: Path) -> Iterator[Path]:
    yield from (path for path in note.parent.glob(f"{note.stem}.*") if path != note)


def list_entries() -> list[Entry]:
    """All cached files, the longest unused first."""
    entries = []
    for note in sorted((paths.root() / "output" / "cache").glob("*/*.json")):
        about = records.read_json(note)
        size = sum(path.stat().st_size for path in list_beside(note))
        entries.append(Entry(note, about["model"], about["kind"], about["runs"], size))
    return sorted(entries, key=lambda entry: entry.used)


def clear_cache(older: float | None = None, keep: float | None = None) -> list[Entry]:
    """Remove and return files unused for `older` days, then the longest unused until `keep` bytes or less are left."""
    entries, now = list_entries(), time.time()
    removed = [entry for entry in entries if older is not None and now - entry.used >= older * DAY_SECONDS]
    left = [entry for entry in entries if entry not in removed]
    while keep is not None and left and sum(entry.bytes for entry in left) > keep:
        removed.append(left.pop(0))
    for entry in removed:
        entry.remove()
    return removed


def parse_size(text: str) -> float:
    """ "20GB" → bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", text.strip().upper())
    if not match:
        raise ValueError(f"{text!r} is no size: write it like 20GB or 500MB")
    return float(match[1]) * SIZE_UNITS[match[2]]


def print_cache() -> None:
    """Print a line for each file, and the total size."""
    entries, now = list_entries(), time.time()
    rows = [
        [
            entry.kind,
            entry.model,
            f"{entry.bytes / 1e6:.1f} MB",
            f"{(now - entry.used) / DAY_SECONDS:.1f}",
            ", ".join(sorted(entry.runs)),
        ]
        for entry in entries
    ]
    print_table("output/cache/", ("", "model", "size", "days unused", "runs"), rows)
    print(f"{len(entries)} file(s), {sum(entry.bytes for entry in entries) / 1e6:.1f} MB")
