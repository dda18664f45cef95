"""Steps of a run, such as a training: folders of output/<run>/ with a record.json, reused where nothing has changed.

The key of a step is its kind, its settings, the content of its inputs and the seed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.fingerprint import plain_value


class Steps:
    """The steps of a run. Under torchrun every process calls `make`; only the first one writes."""

    def __init__(self, run: str, seed: int) -> None:
        self.run, self.seed, self.folder = run, seed, paths.run_folder(run)
        self._lock = lock_run(self.folder) if processes.is_first() else None

    def is_made(self, name: str, settings: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the step is complete with these settings and inputs; prints that, or what has changed."""
        described, hashed = plain_value(settings), hash_inputs(inputs)
        record = records.read_record(self.folder / name)
        if record and record.key == records.step_key(find_kind(name), described, hashed, self.seed):
            print(f"{self.run}: {name} is complete, reused", flush=True)
            return True
        changes = describe_changes({**record.settings, **record.inputs}, {**described, **hashed}) if record else ""
        print(f"{self.run}: {name} {f'is made again: {changes}' if record else '…'}", flush=True)
        return False

    def make(
        self, name: str, make: Callable[[Path], Any], settings: Any, inputs: Mapping[str, Any], together: bool = False
    ) -> Path:
        """Fill output/<run>/<name>/ by make(folder), unless it is complete with the same key; returns the folder.

        settings, inputs: whatever `fingerprint.plain_value` takes. together: under torchrun all processes call make (a
        training); else the first one does and the others wait. A half-written folder is never read: after a kill or an
        error the step starts again.
        """
        folder, first = self.folder / name, processes.is_first()
        if processes.share(self.is_made(name, settings, inputs) if first else None):
            return folder
        if first:
            (self.folder / records.RECORD).unlink(missing_ok=True)  # the run is incomplete until it ships again
            start = time.monotonic()

            def finish(made: Path) -> None:
                key = find_kind(name), plain_value(settings), hash_inputs(inputs), self.seed
                seconds = time.monotonic() - start
                records.write_record(made, records.make_record(*key, records.hash_files(made), seconds))

            records.make_folder(folder, make, finish)
        elif together:
            make(records.temporary_folder(folder))
        processes.share(None)
        return folder


def find_kind(name: str) -> str:
    """A step's name without its fold: steps of several folds may be made of the same inputs."""
    return re.sub(r"^fold\d+/", "", name)


def hash_inputs(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Name → content hash (a folder's is the one that `trace` looks for); a string stays, it is a hash already."""
    plain = {name: plain_value(value) for name, value in inputs.items()}
    return {name: value if isinstance(value, str) else records.hash_json(value) for name, value in plain.items()}


def lock_run(folder: Path) -> int:
    """Lock the run's folder until the process ends; raises BlockingIOError where another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{paths.relative(folder)} is being made by another process: wait, or use run=name"
        ) from error
    return descriptor


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """`a.b: 1 → 2; c: new` for two nested mappings; "" where they are equal. Hashes are shortened."""
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes.append(describe_changes(before, after, f"{prefix}{key}."))
        elif before != after:
            changes.append(f"{prefix}{key}: {_shorten(before)} → {_shorten(after)}")
    return "; ".join(filter(None, changes))


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "none"
    return text if len(text) <= 40 else f"{text[:12]}…{text[-1]}"
