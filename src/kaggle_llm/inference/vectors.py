"""The vectors of documents: a folder with a memory-mapped array, made once for the same texts and encoder.

In output/cache/vectors/ for all folds and runs. A run whose config asks for it ships the folder as a model of its own,
<encoder>_index, whose index.json names the texts and the dtype; a bundle reads it instead of embedding again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.fingerprint import FROM_TEXTS, hash_code
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.texts import TextPrompts

if TYPE_CHECKING:
    import numpy as np

VECTORS, ABOUT = "vectors.npy", "index.json"  # the files of an index
SUFFIX = "_index"  # of its name, after the encoder's
CHECKED, LEAST_COSINE = 4, 0.99  # documents of a shipped index that are embedded again, and how near they have to come
DOCUMENTS_A_PART = 8192  # embedded at a time: beside the file only their vectors are in memory

Embed = Callable[[Sequence[Prompt]], "np.ndarray"]  # prompts → [n, d] vectors of unit length


def hash_documents(documents: Sequence[Prompt]) -> str:
    """Hash of the texts where they are TextPrompts (without tokenising them), else of the token ids."""
    import numpy as np

    if isinstance(documents, TextPrompts):
        return documents.hash()
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.array([len(document), *document], dtype=np.int64).tobytes())
    return digest.hexdigest()


def describe_vectors(encoder: dict[str, Any], documents: Sequence[Prompt], dtype: str) -> dict[str, Any]:
    """All that the vectors depend on. encoder: all that its answers do."""
    tokenised = {"code": hash_code("kaggle_llm.engines.texts", rooms=FROM_TEXTS), "tokenizers": version("tokenizers")}
    return {"documents": hash_documents(documents), "dtype": dtype, "encoder": encoder, "tokenised": tokenised}


def save_vectors(folder: Path, about: dict[str, Any], documents: Sequence[Prompt], embed: Embed) -> None:
    """Embed the documents a part at a time into an array [documents, d]; `about` beside it."""
    import numpy as np

    first, dtype = embed(documents[:DOCUMENTS_A_PART]), np.dtype(about["dtype"])
    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(documents), first.shape[1])}
    with (folder / VECTORS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.astype(dtype).tobytes())
        for start in range(DOCUMENTS_A_PART, len(documents), DOCUMENTS_A_PART):
            file.write(embed(documents[start : start + DOCUMENTS_A_PART]).astype(dtype).tobytes())
    records.write_json(folder / ABOUT, about)


def load_vectors(folder: Path) -> np.ndarray:
    """[documents, d] of a folder that `save_vectors` filled: memory-mapped, read-only."""
    import numpy as np

    vectors: np.ndarray = np.load(folder / VECTORS, mmap_mode="r")
    return vectors


def link_index(folder: Path, source: Path) -> None:
    """The folder that ships, of a cached index."""
    for path in sorted(source.iterdir()):
        records.link_or_copy(path, folder / path.name)


def read_index(folder: Path, documents: Sequence[Prompt], dtype: str, embed: Embed) -> np.ndarray | None:
    """The shipped vectors; None, with a message, where they are of other documents, another dtype or another encoder
    than `embed`."""
    about, fault = records.read_json(folder / ABOUT), ""
    if (about["documents"], about["dtype"]) != (hash_documents(documents), dtype):
        fault = f"not of these documents in {dtype}"
    elif not has_vectors_of(vectors := load_vectors(folder), documents, embed):
        fault = "of another encoder"
    else:
        print(f"{len(vectors)} documents' vectors are read from the shipped index", flush=True)
        return vectors
    print(f"the shipped index is {fault}: the documents are embedded again", flush=True)
    return None


def has_vectors_of(vectors: np.ndarray, documents: Sequence[Prompt], embed: Embed) -> bool:
    """Whether `embed` gives a few documents nearly the same vectors, as the same encoder does in any dtype.

    By what it does, not by its files: the same model may lie elsewhere with other files beside it.
    """
    import numpy as np

    places = np.unique(np.linspace(0, len(documents) - 1, CHECKED).astype(int)).tolist() if len(documents) else []
    if not places:
        return True
    again = embed([documents[n] for n in places])
    return again.shape[1] == vectors.shape[1] and bool(((again * vectors[places]).sum(axis=1) >= LEAST_COSINE).all())
