"""sha256 of large files, remembered by device, inode, size and time of change.

Leaves output/.hashes.json. The name is not in the key, so a hard link in a bundle has the hash of the file that it
links to.
"""

from __future__ import annotations

import time
from pathlib import Path

from kaggle_llm.base import paths, records

SMALL = 2**20  # bytes; smaller files are read again
FRESH = 2e9  # nanoseconds; a file that changed just now may change again within the clock's resolution


class Hashes:
    """A context manager: new hashes are saved at its end."""

    def __init__(self) -> None:
        self._path = paths.root() / "output" / ".hashes.json"
        self._known: dict[str, str] = records.read_optional(self._path, {})
        self._used: dict[str, str] = {}

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._used.keys() <= self._known.keys():
            records.write_json(self._path, {**self._known, **self._used})

    def of(self, path: Path) -> str:
        """sha256 (hex) of a file; read only where it is new, or its size or time changed."""
        stat = path.stat()
        if stat.st_size < SMALL or time.time_ns() - stat.st_mtime_ns < FRESH:
            return records.hash_file(path)
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"
        self._used[key] = self._known.get(key) or self._used.get(key) or records.hash_file(path)
        return self._used[key]
