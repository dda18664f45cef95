"""Caches document vectors as a memory-mapped file, computed once for the same texts and encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.inference.cache import open_entry

if TYPE_CHECKING:
    import numpy as np


def keep_vectors(
    encoder: dict[str, Any], folder: Path, run: str, documents: Sequence[Prompt], embed: Callable[[], np.ndarray]
) -> np.ndarray:
    """[documents, d], read-only; `embed` computes them where they are not cached. encoder: all that they depend on."""
    import numpy as np

    texts = records.hash_json([[int(token) for token in document] for document in documents])
    path = open_entry("vectors", {**encoder, "documents": texts}, folder, run, ".npy")
    if not path.is_file():
        vectors = embed()
        records.write_file(path, lambda temporary: save(temporary, vectors))
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def save(path: Path, vectors: np.ndarray) -> None:
    """Save to exactly this path; np.save with a path would add .npy."""
    import numpy as np

    with path.open("wb") as file:
        np.save(file, vectors)
