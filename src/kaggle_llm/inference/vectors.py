"""The vectors of documents: a memory-mapped safetensors file, made once for the same texts and encoder.

In output/cache/vectors/ for all folds and runs. A run whose config asks for it ships the file as a model of its own,
<encoder>_index, beside index.json, which names the texts and the dtype; a bundle reads it instead of embedding again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.fingerprint import FROM_TEXTS, hash_code
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.texts import TextPrompts
from kaggle_llm.inference.cache import open_entry

if TYPE_CHECKING:
    import numpy as np

VECTORS, ABOUT = "vectors.safetensors", "index.json"  # the files of a shipped index
SUFFIX = "_index"  # of its name, after the encoder's
TENSOR = "vectors"
CODES = {"float32": "F32", "float16": "F16"}  # as safetensors writes them
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


def keep_vectors(
    encoder: dict[str, Any], folder: Path, run: str, documents: Sequence[Prompt], embed: Embed, dtype: str = "float32"
) -> Path:
    """The file of the documents' vectors, in the cache; `embed` computes them where it is not there yet.

    encoder: all that they depend on. folder: the encoder's, for the cache's list.
    """
    tokenised = {"code": hash_code("kaggle_llm.engines.texts", rooms=FROM_TEXTS), "tokenizers": version("tokenizers")}
    about = {**encoder, "documents": hash_documents(documents), "tokenised": tokenised, "stored": dtype}
    path = open_entry("vectors", about, folder, run, ".safetensors")
    if not path.is_file():
        records.write_file(path, lambda temporary: write_vectors(temporary, documents, embed, dtype))
    return path


def write_vectors(path: Path, documents: Sequence[Prompt], embed: Embed, dtype: str) -> None:
    """Embed the documents a part at a time into a safetensors file of one tensor, [documents, d]."""
    import numpy as np

    first = embed(documents[:DOCUMENTS_A_PART])
    shape = (len(documents), first.shape[1])
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    about = {TENSOR: {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(first.astype(dtype).tobytes())
        for start in range(DOCUMENTS_A_PART, len(documents), DOCUMENTS_A_PART):
            file.write(embed(documents[start : start + DOCUMENTS_A_PART]).astype(dtype).tobytes())


def map_vectors(path: Path) -> np.ndarray:
    """[documents, d] of a file that `write_vectors` wrote: memory-mapped, read-only."""
    import numpy as np

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))[TENSOR]
    dtype = next(name for name, code in CODES.items() if code == about["dtype"])
    if 0 in about["shape"]:  # nothing can be mapped
        return np.empty(about["shape"], dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=8 + length, shape=tuple(about["shape"]))


def write_index(folder: Path, vectors: Path, documents: str, dtype: str, encoder: str) -> None:
    """Write the folder that ships: the vectors, and hashes of their texts and encoder."""
    records.link_or_copy(vectors, folder / VECTORS)
    records.write_json(folder / ABOUT, {"documents": documents, "dtype": dtype, "encoder": encoder})


def link_index(folder: Path, source: Path) -> None:
    """The folder that ships, of a cached index that is a folder itself."""
    for path in sorted(source.iterdir()):
        records.link_or_copy(path, folder / path.name)


def read_index(folder: Path, documents: Sequence[Prompt], dtype: str, embed: Embed) -> np.ndarray | None:
    """The shipped vectors; None, with a message, where they are of other documents, another dtype or another encoder
    than `embed`."""
    about, fault = records.read_json(folder / ABOUT), ""
    if (about["documents"], about["dtype"]) != (hash_documents(documents), dtype):
        fault = f"not of these documents in {dtype}"
    elif not has_vectors_of(vectors := map_vectors(folder / VECTORS), documents, embed):
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
