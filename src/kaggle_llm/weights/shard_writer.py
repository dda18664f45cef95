"""Writes safetensors checkpoints tensor by tensor, a block of rows at a time: a model is never whole in memory.

Leaves in a folder: the shards, and model.safetensors.index.json where there is more than one.
"""

from __future__ import annotations

import json
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
from kaggle_llm.weights.checkpoint import ELEMENT_BITS, INDEX, SAFETENSORS_NAMES, SINGLE, Checkpoint, is_float

if TYPE_CHECKING:
    import torch

TEXT_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}  # config, tokenizer, chat template
BLOCK_ELEMENTS = 2**19  # computed and written at a time: in fp32 they fit into a core's cache
ROWS_MULTIPLE = 16  # of a block's rows: the matrix product then has the bits of the whole one
WAITING_BLOCKS = 64  # computed while the disk is busy
SYNC_BYTES = 2**27  # written between two fsyncs, which run while the next blocks are computed


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
