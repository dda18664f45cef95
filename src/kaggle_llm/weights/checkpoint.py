"""Safetensors checkpoints, read tensor by tensor: a model is never whole in memory. Files are checked when opened."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {  # safetensors' name → torch's name, bits of an element
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn_x2", 4),
}
SAFETENSORS_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
ELEMENT_BITS = dict(DTYPES.values())  # by torch's name
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: `size` bytes from byte `start` on."""

    file: Path
    dtype: str
    """torch's name."""
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint:
    """The tensors of a model folder by name. Headers are checked at once, data are memory-mapped when read.

    Raises FileNotFoundError for a missing shard, ValueError for a pickle checkpoint, a truncated or corrupt file, and
    an index that does not match the shards.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for file in list_shards(folder) if files is None else files:
            for name, tensor in read_header(file).items():
                if name in self.tensors:
                    raise ValueError(f"{folder} has {name} in {self.tensors[name].file.name} and in {file.name}")
                self.tensors[name] = tensor
        if files is None:
            check_index(self)
        self._mapped: tuple[Path, mmap.mmap] | None = None

    @property
    def shards(self) -> dict[str, list[str]]:
        """File name → names of its tensors in the file's order."""
        shards: dict[str, list[str]] = {}
        for name, tensor in sorted(self.tensors.items(), key=lambda item: (item[1].file, item[1].start)):
            shards.setdefault(tensor.file.name, []).append(name)
        return shards

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored. Its memory is the mapped file: never change it in place. Raises KeyError."""
        import warnings

        import torch

        tensor = self.tensors[name]
        dtype = getattr(torch, tensor.dtype)
        if not tensor.size:
            return torch.empty(tensor.shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self._map(tensor.file), dtype=torch.uint8, count=tensor.size, offset=tensor.start)
        if tensor.start % dtype.itemsize:  # other writers' files need not be aligned
            flat = flat.clone()
        return flat.view(dtype).view(tensor.shape)

    def _map(self, file: Path) -> mmap.mmap:
        """The mapped shard; only one is mapped, and pages that were read before leave the memory."""
        if self._mapped is None or self._mapped[0] != file:
            with file.open("rb") as opened:
                self._mapped = (file, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        self._mapped[1].madvise(mmap.MADV_DONTNEED)  # tensors still in use are paged in again
        return self._mapped[1]


def list_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, as its index names them or all that lie there."""
    index = folder / INDEX
    if index.is_file():
        if (folder / SINGLE).is_file():  # which of them is loaded depends on the library
            raise ValueError(f"{folder} has {SINGLE} and {INDEX}, two models: remove the wrong one")
        names = sorted(set(read_index(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}")
        return [folder / name for name in names]
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{folder} holds {pickles[0]}, a pickle, which can run any code when it is opened: convert it to "
                f"safetensors with save_pretrained, on a machine that you can afford to lose"
            )
        raise FileNotFoundError(f"{folder} holds no safetensors: give the folder of a model")
    return files


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → name of its file in the same folder."""
    try:
        index = dict(records.read_json(path)["weight_map"].items())
        outside = [file for file in index.values() if Path(file).name != file]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of shards: {error!r}") from error
    if outside or not index:
        raise ValueError(f"{path} is no index of shards: it names {outside[0] if outside else 'no file'}")
    return index


def check_index(checkpoint: Checkpoint) -> None:
    """Raises ValueError where the index names a tensor that its shard lacks."""
    path = checkpoint.folder / INDEX
    if not path.is_file():
        return
    index = read_index(path)
    files = {name: tensor.file.name for name, tensor in checkpoint.tensors.items()}
    wrong = sorted(name for name, file in index.items() if files.get(name) != file)
    if wrong:
        raise ValueError(
            f"{path} names {wrong[0]} in {index[wrong[0]]}, which does not hold it ({len(wrong)} tensor(s) in all)"
        )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name. Format: https://huggingface.co/docs/safetensors, "Format".

    Raises ValueError for a truncated or corrupt file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _parse_entry(file, entry, 8 + length) for name, entry in header.items()}
        check_layout(tensors, 8 + length, size)
    except (struct.error, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file: {error}; download or make it again") from error
    return tensors


def check_layout(tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Raises ValueError unless the tensors follow each other without gaps from byte `start` to the file's end."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != start:
            raise ValueError(f"{name} begins at byte {tensor.start} instead of {start}")
        start += tensor.size
    if start != size:
        raise ValueError(f"its header needs {start} bytes, the file has {size}")


def _parse_entry(file: Path, entry: Mapping[str, Any], offset: int) -> StoredTensor:
    """A tensor from its entry in the header; offset: where the data begin."""
    start, end = entry["data_offsets"]
    numbers = (start, end, *entry["shape"])
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"offsets and shape of a tensor must be whole numbers from 0 on, got {list(numbers)}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {entry['dtype']}, known are {sorted(DTYPES)}")
    dtype, bits = DTYPES[entry["dtype"]]
    tensor = StoredTensor(file, dtype, tuple(entry["shape"]), offset + start, end - start)
    if tensor.size * 8 != prod(tensor.shape) * bits:
        raise ValueError(f"{tensor.size} bytes for a tensor of {dtype} {tensor.shape}")
    return tensor


def is_float(dtype: str) -> bool:
    """Floats of 16 bits and more: what merging computes with."""
    return dtype in ("float64", "float32", "float16", "bfloat16")
