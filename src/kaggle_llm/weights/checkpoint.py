"""Checkpoints of safetensors, read and written tensor by tensor: a model is never whole in memory.

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
TEXTS = {".json", ".txt", ".model", ".jinja", ".tiktoken"}  # what lies beside the weights of a model
DTYPES = {  # safetensors' name → torch's
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
NAMES = {torch_name: name for name, torch_name in DTYPES.items()}
BLOCK = 2**19  # elements that are computed and written at a time: in fp32 they fit into a core's cache
ROWS = 16  # a block's rows are a multiple of it: the matrix product then has the bits of the whole one
WAITING = 64  # blocks that are computed while the disk is busy
SYNC = 2**27  # bytes after which what was written is sent to the disk, while the next ones are computed
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: `size` bytes from `start` on in `file`."""

    file: Path
    dtype: str
    """torch's name."""
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint:
    """The tensors of a model folder by name. Headers are checked at once, data are mapped when they are read.

    Raises FileNotFoundError for a missing shard, ValueError for a pickle checkpoint, a truncated or corrupt file, and
    an index that does not say what the shards hold.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None) -> None:
        self.folder = folder
        self.tensors: dict[str, Place] = {}
        for file in list_shards(folder) if files is None else files:
            for name, place in read_header(file).items():
                if name in self.tensors:
                    raise ValueError(f"{folder} has {name} in {self.tensors[name].file.name} and in {file.name}")
                self.tensors[name] = place
        if files is None:
            check_index(self)
        self._mapped: tuple[Path, mmap.mmap] | None = None

    @property
    def shards(self) -> dict[str, list[str]]:
        """File name → its tensors, in the order in which they lie there."""
        found: dict[str, list[str]] = {}
        for name, place in sorted(self.tensors.items(), key=lambda item: (item[1].file, item[1].start)):
            found.setdefault(place.file.name, []).append(name)
        return found

    def read(self, name: str) -> torch.Tensor:
        """The tensor, as stored; its memory is the file's, mapped for reading: compute from it, never in place.

        Raises KeyError for a name that the checkpoint has not.
        """
        import warnings

        import torch

        place = self.tensors[name]
        dtype = getattr(torch, place.dtype)
        if not place.size:
            return torch.empty(place.shape, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self._map(place.file), dtype=torch.uint8, count=place.size, offset=place.start)
        if place.start % dtype.itemsize:  # files by other writers need not be aligned
            flat = flat.clone()
        return flat.view(dtype).view(place.shape)

    def _map(self, file: Path) -> mmap.mmap:
        """One shard at a time, and of it no more than is in use: what was read before leaves the memory."""
        if self._mapped is None or self._mapped[0] != file:
            with file.open("rb") as opened:
                self._mapped = (file, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        self._mapped[1].madvise(mmap.MADV_DONTNEED)  # whoever still uses a tensor of it reads it again, unknowingly
        return self._mapped[1]


def list_shards(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, as its index names them or all that lie there."""
    index = folder / INDEX
    if index.is_file():
        if (folder / SINGLE).is_file():  # transformers would take the one, others the other
            raise ValueError(f"{folder} has {SINGLE} and {INDEX}, two models: remove the one that is not meant")
        names = sorted(set(read_index(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}")
        return [folder / name for name in names]
    found = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{folder} holds {pickles[0]}, a pickle, which can run any code when it is opened: convert it to "
                f"safetensors with save_pretrained on a machine that may be lost"
            )
        raise FileNotFoundError(f"{folder} holds no safetensors: no model is there")
    return found


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name, of a file in the same folder."""
    try:
        index = dict(records.read_json(path)["weight_map"].items())
        outside = [file for file in index.values() if Path(file).name != file]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of shards: {error!r}") from error
    if outside or not index:
        raise ValueError(f"{path} is no index of shards: it names {outside[0] if outside else 'none'}")
    return index


def check_index(checkpoint: Checkpoint) -> None:
    """Raises ValueError where an index names a tensor that its shard has not."""
    path = checkpoint.folder / INDEX
    if not path.is_file():
        return
    index = read_index(path)
    places = {name: place.file.name for name, place in checkpoint.tensors.items()}
    wrong = sorted(name for name, file in index.items() if places.get(name) != file)
    if wrong:
        raise ValueError(f"{path} has {wrong[0]} in {index[wrong[0]]}, which does not hold it ({len(wrong)} such)")


def read_header(file: Path) -> dict[str, Place]:
    """The tensors of one safetensors file. Format: https://huggingface.co/docs/safetensors, "Format"."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(size - 8, HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            places = {name: _place(file, entry, 8 + length) for name, entry in header.items()}
        check_places(places, 8 + length, size)
    except (struct.error, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file: {error}; fetch or make it again") from error
    return places


def check_places(places: Mapping[str, Place], start: int, size: int) -> None:
    """Raises ValueError unless the tensors fill the file from `start` on, without holes and one after the other."""
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.start != start:
            raise ValueError(f"{name} begins at byte {place.start}, where {start} was to follow")
        start += place.size
    if start != size:
        raise ValueError(f"its header speaks of {start} bytes, the file has {size}")


def _place(file: Path, entry: Mapping[str, Any], offset: int) -> Place:
    start, end = entry["data_offsets"]
    numbers = (start, end, *entry["shape"])
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"offsets and shape of a tensor are whole numbers, these are {list(numbers)}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not known: {sorted(DTYPES)} are")
    place = Place(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), offset + start, end - start)
    if place.size != prod(place.shape) * itemsize(place.dtype):
        raise ValueError(f"{place.size} bytes for a tensor of {place.dtype} {place.shape}")
    return place


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    import torch

    return int(getattr(torch, dtype).itemsize)


def is_float(dtype: str) -> bool:
    """Floats of 16 bits and more: what merging computes with."""
    return dtype in ("float64", "float32", "float16", "bfloat16")


# writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """A tensor to be written. `blocks` gives its rows in order, in its dtype, not all at once."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * itemsize(self.dtype)


def row_blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the first dimension with about BLOCK elements each; one of everything for a scalar."""
    if not shape:
        yield slice(None)
        return
    step = max(ROWS, BLOCK // max(prod(shape[1:]), 1) // ROWS * ROWS)
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def copy_tensor(checkpoint: Checkpoint, name: str, dtype: str | None = None) -> Output:
    """`name` of a checkpoint as it is; floats in `dtype` where one is given."""
    import torch

    place = checkpoint.tensors[name]
    wanted = dtype if dtype and is_float(place.dtype) else place.dtype

    def blocks() -> Iterator[torch.Tensor]:
        tensor = checkpoint.read(name)
        for rows in row_blocks(place.shape):
            yield tensor[rows if place.shape else ...].to(getattr(torch, wanted))

    return Output(name, wanted, place.shape, blocks)


def write_shards(folder: Path, shards: Mapping[str, Sequence[Output]]) -> None:
    """Write every shard (file name → tensors), and the index where there are several.

    A second thread writes and syncs while the next block is computed. Raises ValueError naming a tensor with
    non-finite values, OSError where the disk is full; the caller removes the folder.
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
        places = {output.name: file for file, outputs in shards.items() for output in outputs}
        records.write_json(
            folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small operations: handing each of them to all cores costs more than it gains, on a busy machine twenty
    times as much, and the writer needs a core.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_file(file: Path, outputs: Sequence[Output], report: Callable[[int], object]) -> None:
    """One safetensors file; `report` is told the bytes of every block."""
    with Writer() as writer:
        writer.put(file)
        write_tensors(writer, outputs, report)


def write_tensors(writer: Writer, outputs: Sequence[Output], report: Callable[[int], object]) -> None:
    writer.put(make_header(outputs))
    for output in outputs:
        written = 0
        for block in output.blocks():
            check_finite(block, output.name)
            data = to_bytes(block)
            writer.put(data)
            written += data.nbytes
            report(data.nbytes)
        if written != output.size:
            raise ValueError(f"{output.name}: {written} bytes were made of {output.size}")


def make_header(outputs: Sequence[Output]) -> memoryview:
    """The header of a safetensors file whose tensors follow each other, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for output in outputs:
        offsets = [start, start + output.size]
        header[output.name] = {"dtype": NAMES[output.dtype], "shape": list(output.shape), "data_offsets": offsets}
        start += output.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(struct.pack("<Q", len(text)) + text)


def check_finite(block: torch.Tensor, name: str) -> None:
    """Raises ValueError for an infinite or NaN value. Where there is one their sum, one fast pass, is not finite."""
    import torch

    if not is_float(str(block.dtype).removeprefix("torch.")) or torch.isfinite(block.sum()):
        return
    bad = int((~torch.isfinite(block)).sum())
    if bad:  # else the sum alone is too large
        raise ValueError(
            f"{name} has {bad} non-finite values in {block.dtype}: a member is broken, or float16 is too narrow for it"
        )


def to_bytes(block: torch.Tensor) -> memoryview:
    import torch

    return memoryview(block.contiguous().view(-1).view(torch.uint8).numpy())


class Writer:
    """Files that another thread writes and syncs, so that computing, copying and the disk work at the same time."""

    def __init__(self) -> None:
        self._items: queue.Queue[Path | memoryview | None] = queue.Queue(maxsize=WAITING)
        self._error: OSError | None = None
        self._file, self._descriptor, self._unsynced = Path(), -1, 0
        self._thread = threading.Thread(target=self._work, daemon=True)

    def put(self, item: Path | memoryview) -> None:
        """The next bytes, or the file that they go into from now on. Raises the OSError of an earlier item."""
        if self._error:
            raise self._error
        self._items.put(item)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._items.put(None)
        self._thread.join()
        if self._error and kind is None:
            raise self._error

    def _work(self) -> None:
        """Goes on taking items after an error, so that nobody waits for a place in the queue."""
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
            error.filename = str(self._file)  # a full disk says which
            self._error = self._error or error

    def _write(self, block: memoryview) -> None:
        while block.nbytes:
            done = os.write(self._descriptor, block)
            block = block[done:]
            self._unsynced += done
        if self._unsynced >= SYNC:
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


# what lies beside the weights -------------------------------------------------------------------------------


def copy_texts(source: Path, folder: Path) -> None:
    """Config, tokenizer, chat template, generation config and what else lies beside the weights of a model."""
    for path in records.list_files(source):
        relative = path.relative_to(source)
        ours = path.name in (INDEX, records.WEIGHTS, records.RECORD) or path.name.startswith("adapter_")
        if path.suffix in TEXTS and not ours and not any(part.startswith(".") for part in relative.parts):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def fill_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`folder` as `fill` makes it, complete or absent."""
    records.make_folder(folder, fill, finish=lambda made: None)
