"""Safetensors checkpoints, read tensor by tensor: a model is never whole in memory. Files are checked when opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class StoredTensor:
    name: str
    file: Path
    dtype: str
    """torch's name."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * ELEMENT_BITS[self.dtype] // 8


class Checkpoint:
    """The tensors of a model folder by name. Headers are checked at once, data are read tensor by tensor.

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

    @property
    def shards(self) -> dict[str, list[str]]:
        """File name → names of its tensors in the file's order."""
        shards: dict[str, list[str]] = {}
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].file):
            shards.setdefault(tensor.file.name, []).append(name)
        return shards

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, mapped from the file: never change it in place. Raises KeyError.

        The file is opened for each tensor, so that its pages leave the memory with it.
        """
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


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
    """The tensors of one safetensors file by name, in their order there; raises ValueError for a corrupt file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            return {
                name: StoredTensor(name, file, DTYPES[stored.get_dtype()][0], tuple(stored.get_shape()))
                for name, stored in slices.items()
            }
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file: {error}; download or make it again") from error


def is_float(dtype: str) -> bool:
    """Floats of 16 bits and more: what merging computes with."""
    return dtype in ("float64", "float32", "float16", "bfloat16")
