"""Checkpoints from which a killed training resumes, kept beside its output folder until that is complete.

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
    """The checkpoints of one training; those of other settings, examples, bases or seeds are removed.

    about: all that the trained weights depend on, as JSON.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.parent = folder.with_name(f"{folder.name}.checkpoints")
        self.folder = self.parent / records.hash_json(dict(about))[:16]

    def open(self) -> Path | None:
        """Remove unusable checkpoints and return the latest complete one."""
        for other in self.parent.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        complete = []
        for checkpoint in self.folder.glob("checkpoint-*"):
            if (checkpoint / COMPLETE).is_file():
                complete.append(checkpoint)
            else:
                shutil.rmtree(checkpoint)
        return max(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)

    def complete(self, step: int) -> None:
        """Mark the checkpoint of `step` as complete: the last write to it."""
        records.write_json(self.folder / f"checkpoint-{step}" / COMPLETE, {"step": step})

    def remove(self) -> None:
        shutil.rmtree(self.parent, ignore_errors=True)
