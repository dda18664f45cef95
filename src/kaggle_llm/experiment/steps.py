"""What takes long is a step: a folder of output/<run>/ with a record.json, skipped where it was made of the same.

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
    """The steps of a run. Under torchrun every process calls them; the first one writes."""

    def __init__(self, run: str, seed: int) -> None:
        self.run, self.seed, self.folder = run, seed, paths.run_folder(run)
        self._lock = lock_run(self.folder) if processes.is_first() else None

    def is_made(self, name: str, settings: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the step is complete, of just these; says so, or what has changed."""
        folder, described, hashed = self.folder / name, plain_value(settings), hash_inputs(inputs)
        known = records.read_record(folder)
        if known and known.key == records.step_key(find_kind(name), described, hashed, self.seed):
            print(f"{self.run}: {name} is complete, reused", flush=True)
            return True
        changes = describe_changes({**known.settings, **known.inputs}, {**described, **hashed}) if known else ""
        print(f"{self.run}: {name} {f'is made again: {changes}' if known else '…'}", flush=True)
        return False

    def make(
        self,
        name: str,
        make: Callable[[Path], Any],
        settings: Any,
        inputs: Mapping[str, Any],
        together: bool = False,
    ) -> Path:
        """output/<run>/<name>/, made by make(folder); skipped where a complete one has the same key.

        settings, inputs: what `fingerprint.plain_value` takes. together: under torchrun all processes make it (a
        training); else the first one does and the others wait. Killed or failed at any moment, a half-written folder is
        never read: the step starts again.
        """
        folder, first = self.folder / name, processes.is_first()
        if processes.share(self.is_made(name, settings, inputs) if first else None):
            return folder
        if first:
            (self.folder / records.RECORD).unlink(missing_ok=True)  # the run is complete again when it ships
            start = time.monotonic()

            def finish(made: Path) -> None:
                about = find_kind(name), plain_value(settings), hash_inputs(inputs), self.seed
                seconds = time.monotonic() - start
                records.write_record(made, records.make_record(*about, records.hash_files(made), seconds))

            records.make_folder(folder, make, finish)
        elif together:
            make(records.temporary_folder(folder))
        processes.share(None)
        return folder


def find_kind(name: str) -> str:
    """A step's name without its fold: what was learned of other rows may be the same."""
    return re.sub(r"^fold\d+/", "", name)


def hash_inputs(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Name → content hash, of a folder the one by which trace finds it; what is a hash already stays."""
    plain = {name: plain_value(value) for name, value in inputs.items()}
    return {name: value if isinstance(value, str) else records.hash_json(value) for name, value in plain.items()}


def lock_run(folder: Path) -> int:
    """An open lock on the run's folder, held until the process ends; raises BlockingIOError where another holds it."""
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
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.append(describe_changes(before, after, f"{prefix}{key}."))
        elif before != after:
            found.append(f"{prefix}{key}: {_short(before)} → {_short(after)}")
    return "; ".join(part for part in found if part)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "none"
    return text if len(text) <= 40 else f"{text[:12]}…{text[-1]}"
