"""Safetensors checkpoints, read and written tensor by tensor: a model is never whole in memory.

Leaves in a folder: the shards, and model.safetensors.index.json where there is more than one.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
TEXT_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}  # config, tokenizer, chat template
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
BLOCK_ELEMENTS = 2**19  # computed and written at a time: in fp32 they fit into a core's cache
ROWS_MULTIPLE = 16  # of a block's rows: the matrix product then has the bits of the whole one
WAITING_BLOCKS = 64  # computed while the disk is busy
SYNC_BYTES = 2**27  # after so many written bytes an fsync, while the next blocks are computed
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


# writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """A tensor to write. `blocks` yields its rows in order and in its dtype, a few at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * ELEMENT_BITS[self.dtype] // 8


def row_blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the first dimension with about BLOCK_ELEMENTS elements each; for a scalar one slice of all."""
    if not shape:
        yield slice(None)
        return
    step = max(ROWS_MULTIPLE, BLOCK_ELEMENTS // max(prod(shape[1:]), 1) // ROWS_MULTIPLE * ROWS_MULTIPLE)
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def copy_tensor(checkpoint: Checkpoint, name: str, dtype: str | None = None) -> Output:
    """Tensor `name` of a checkpoint as it is; floats are cast to `dtype` where one is given."""
    import torch

    stored = checkpoint.tensors[name]
    written = dtype if dtype and is_float(stored.dtype) else stored.dtype

    def blocks() -> Iterator[torch.Tensor]:
        tensor = checkpoint.read(name)
        for rows in row_blocks(stored.shape):
            yield tensor[rows if stored.shape else ...].to(getattr(torch, written))

    return Output(name, written, stored.shape, blocks)


def write_shards(folder: Path, shards: Mapping[str, Sequence[Output]]) -> None:
    """Write every shard (file name → tensors), and the index where there are several.

    Raises ValueError naming a tensor with non-finite values, OSError where the disk is full; the caller removes the
    folder then.
    """
    from tqdm import tqdm

    total = sum(output.size for outputs in shards.values() for output in outputs)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise OSError(f"{folder} needs {total / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left: make room")
    progress = tqdm(total=total, desc="writing weights", unit="B", unit_scale=True, mininterval=1.0, delay=3.0)
    with progress as bar, one_thread(), Writer() as writer:
        for file, outputs in shards.items():
            writer.put(folder / file)
            write_tensors(writer, outputs, bar.update)
    if list(shards) != [SINGLE]:
        files = {output.name: file for file, outputs in shards.items() for output in outputs}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        records.write_json(folder / INDEX, index)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread of torch: for many small operations, spreading each over all cores costs more than it
    gains (twenty times as much on a busy machine), and the writer needs a core.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_safetensors(file: Path, outputs: Sequence[Output], report: Callable[[int], object]) -> None:
    """Write one safetensors file; `report` is called with the bytes of every block."""
    with Writer() as writer:
        writer.put(file)
        write_tensors(writer, outputs, report)


def write_tensors(writer: Writer, outputs: Sequence[Output], report: Callable[[int], object]) -> None:
    writer.put(make_header(outputs))
    for output in outputs:
        written = 0
        for block in output.blocks():
            check_weights_finite(block, output.name)
            data = to_bytes(block)
            writer.put(data)
            written += data.nbytes
            report(data.nbytes)
        if written != output.size:
            raise ValueError(f"{output.name}: {written} bytes were written, its header says {output.size}")


def make_header(outputs: Sequence[Output]) -> memoryview:
    """The header of a safetensors file whose tensors follow each other, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for output in outputs:
        offsets = [start, start + output.size]
        header[output.name] = {
            "dtype": SAFETENSORS_NAMES[output.dtype],
            "shape": list(output.shape),
            "data_offsets": offsets,
        }
        start += output.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(struct.pack("<Q", len(text)) + text)


def check_weights_finite(block: torch.Tensor, name: str) -> None:
    """Raises ValueError for an infinite or NaN value. A finite sum, one fast pass, shows that there is none."""
    import torch

    if not is_float(str(block.dtype).removeprefix("torch.")) or torch.isfinite(block.sum()):
        return
    bad = int((~torch.isfinite(block)).sum())
    if bad:  # else the sum alone is too large
        raise ValueError(
            f"{name} has {bad} non-finite values in {block.dtype}: the weights are broken, or too large for float16"
        )


def to_bytes(block: torch.Tensor) -> memoryview:
    import torch

    return memoryview(block.contiguous().view(-1).view(torch.uint8).numpy())


class Writer:
    """Writes and syncs files in a second thread, while the next blocks are computed."""

    def __init__(self) -> None:
        self._items: queue.Queue[Path | memoryview | None] = queue.Queue(maxsize=WAITING_BLOCKS)
        self._error: OSError | None = None
        self._file, self._descriptor, self._unsynced = Path(), -1, 0
        self._thread = threading.Thread(target=self._work, daemon=True)

    def put(self, item: Path | memoryview) -> None:
        """Queue bytes, or the file that the following bytes go into. Raises the OSError of an earlier item."""
        if self._error:
            raise self._error
        self._items.put(item)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._items.put(None)
        self._thread.join()
        if self._error and error_type is None:
            raise self._error

    def _work(self) -> None:
        """Takes items even after an error, so that `put` never blocks on a full queue."""
        while (item := self._items.get()) is not None:
            if not self._error:
                self._try(item)
        self._try(None)

    def _try(self, item: Path | memoryview | None) -> None:
        try:
            if isinstance(item, memoryview):
                self._write(item)
            else:
                self._close()
            if isinstance(item, Path):
                self._file, self._descriptor = item, os.open(item, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        except OSError as error:
            error.filename = str(self._file)
            self._error = self._error or error

    def _write(self, block: memoryview) -> None:
        while block.nbytes:
            done = os.write(self._descriptor, block)
            block = block[done:]
            self._unsynced += done
        if self._unsynced >= SYNC_BYTES:
            os.fdatasync(self._descriptor)
            self._unsynced = 0

    def _close(self) -> None:
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# beside the weights -----------------------------------------------------------------------------------------


def copy_text_files(source: Path, folder: Path) -> None:
    """Copy config, tokenizer, chat template, generation config and the like from one model folder to another."""
    for path in records.list_files(source):
        relative = path.relative_to(source)
        ours = path.name in (INDEX, records.WEIGHTS, records.RECORD) or path.name.startswith("adapter_")
        if path.suffix in TEXT_SUFFIXES and not ours and not any(part.startswith(".") for part in relative.parts):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def fill_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` with `fill`: afterwards it is complete or absent."""
    records.make_folder(folder, fill, finish=lambda made: None)
