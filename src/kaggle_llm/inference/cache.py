"""The cache in output/cache/: models' answers, document vectors and BM25's indexes, for later runs.

Only training and CV read it. Each file or folder has a note beside it, <key>.json: what it belongs to, and when each
run used it.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table

DAY_SECONDS = 86400.0
SIZE_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class Entry:
    """One cached file, with SQLite's files beside it, or one folder."""

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
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def open_entry(kind: str, about: dict[str, Any], model: Path, run: str, suffix: str) -> Path:
    """The path of what `about` describes; notes that `run` uses it.

    kind: answers, vectors or lexical. model: what the list shows: a model, or whose documents they are.
    """
    path = paths.root() / "output" / "cache" / kind / f"{records.hash_json(about)[:32]}{suffix}"
    note = path.with_suffix(".json")
    noted = records.read_optional(note, {"kind": kind, "model": paths.relative(model), **about})
    noted["runs"] = {**noted.get("runs", {}), run: time.time()}
    records.write_json(note, noted)
    return path


def fill_entry(path: Path, make: Callable[[Path], None]) -> None:
    """The folder of an entry, filled by make(folder) where it is not there yet; another process waits meanwhile."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            records.make_folder(path, make)


def list_beside(note: Path) -> Iterator[Path]:
    yield from (path for path in note.parent.glob(f"{note.stem}.*") if path != note)


def list_entries() -> list[Entry]:
    """All cached files, the longest unused first."""
    entries = []
    for note in sorted((paths.root() / "output" / "cache").glob("*/*.json")):
        about = records.read_json(note)
        files = [file for path in list_beside(note) for file in (path, *path.rglob("*")) if file.is_file()]
        size = sum(file.stat().st_size for file in files)
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
