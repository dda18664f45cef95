"""Checkpoints that a killed training goes on from: beside the folder that is made, gone when it is complete.

<folder>.checkpoints/<key>/checkpoint-<step>/; one without COMPLETE was being written when the process died.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import records

COMPLETE = "complete.json"


class Checkpoints:
    """What a training with the same settings, examples, base and seed left behind; others' are removed.

    about: all that the trained weights depend on, as JSON.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.parent = folder.with_name(f"{folder.name}.checkpoints")
        self.folder = self.parent / records.hash_json(dict(about))[:16]

    def open(self) -> Path | None:
        """Remove what cannot be used, and name the latest complete checkpoint."""
        for other in self.parent.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for half in self._all():
            if not (half / COMPLETE).is_file():
                shutil.rmtree(half)
        found = sorted(self._all(), key=_step)
        return found[-1] if found else None

    def complete(self, step: int) -> None:
        """The checkpoint of `step` is whole: written last."""
        records.write_json(self.folder / f"checkpoint-{step}" / COMPLETE, {"step": step})

    def remove(self) -> None:
        shutil.rmtree(self.parent, ignore_errors=True)

    def _all(self) -> list[Path]:
        return list(self.folder.glob("checkpoint-*"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
