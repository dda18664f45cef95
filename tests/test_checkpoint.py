"""Checkpoints are read as the safetensors library reads them, written so that it reads them, and bad ones are named."""

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forks
import pytest

from kaggle_llm.base import records
from kaggle_llm.weights import checkpoint as checkpoints
from kaggle_llm.weights import shard_writer
from kaggle_llm.weights.checkpoint import Checkpoint
from kaggle_llm.weights.merge import merge_adapter
from kaggle_llm.weights.shard_writer import Output, copy_tensor, row_blocks, write_shards

if TYPE_CHECKING:
    import torch

FILE = "model.safetensors"


def make_tensors() -> dict[str, "torch.Tensor"]:
    """Every dtype, scalars, tensors of no element, sizes that leave the next one unaligned."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "bytes": torch.randint(0, 255, (3,), generator=generator).to(torch.uint8),
        "flags": torch.tensor([True, False, True]),
    }
    for dtype in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        tensors[dtype] = torch.randn(5, 3, generator=generator).to(getattr(torch, dtype))
    for dtype in ("int64", "int32", "int16", "int8"):
        tensors[dtype] = torch.randint(-100, 100, (2, 1, 3), generator=generator).to(getattr(torch, dtype))
    return tensors


def same(first: "torch.Tensor", second: "torch.Tensor") -> bool:
    import torch

    alike = first.dtype == second.dtype and first.shape == second.shape
    return alike and first.flatten().view(torch.uint8).equal(second.flatten().view(torch.uint8))


def write_raw(file: Path, tensors: dict[str, "torch.Tensor"], order: list[str]) -> None:
    """By hand, after the format's page: data in `order`, nothing aligned, the header in the order of `tensors`."""
    import torch

    data, offsets = b"", {}
    for name in order:
        raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        offsets[name] = [len(data), len(data) + len(raw)]
        data += raw
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, tensor in tensors.items():
        dtype = checkpoints.SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets[name]}
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 2 == 0)  # an odd length: no tensor begins at an even place
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_file_of_the_library_is_read_as_it_was_written(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = make_tensors()
    save_file(tensors, tmp_path / FILE)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(same(checkpoint.read(name), tensor) for name, tensor in tensors.items())


def test_unaligned_tensors_in_any_order_are_read(tmp_path: Path) -> None:
    tensors = make_tensors()
    order = sorted(tensors, key=lambda name: name[::-1])
    write_raw(tmp_path / FILE, tensors, order)
    checkpoint = Checkpoint(tmp_path)
    assert all(same(checkpoint.read(name), tensor) for name, tensor in tensors.items())
    stored = [name for name in checkpoint.shards[FILE] if tensors[name].numel()]
    assert stored == [name for name in order if tensors[name].numel()]


def test_a_tensor_stays_what_it_was_while_others_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {f"{i}": torch.full((2**16,), float(i)) for i in range(8)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"other": torch.ones(2**16)}, tmp_path / "b.safetensors")
    checkpoint = Checkpoint(tmp_path)
    found = {name: checkpoint.read(name) for name in [*tensors, "other"]}
    assert all(same(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("files", [(FILE,), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")])
def test_the_library_reads_what_is_written(tmp_path: Path, files: tuple[str, ...]) -> None:
    from safetensors import safe_open

    tensors = make_tensors()
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    write_raw(tmp_path / "from" / FILE, tensors, list(tensors))
    source = Checkpoint(tmp_path / "from")
    names = sorted(tensors)
    shards = {file: [copy_tensor(source, name) for name in names[i :: len(files)]] for i, file in enumerate(files)}
    write_shards(tmp_path / "to", shards)
    found = {}
    for path in (tmp_path / "to").glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    assert found.keys() == tensors.keys() and all(same(found[name], tensors[name]) for name in tensors)
    index = tmp_path / "to" / checkpoints.INDEX
    assert index.is_file() == (len(files) > 1)
    if index.is_file():
        written = json.loads(index.read_text())
        assert written["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert written["weight_map"] == {name: files[i % 2] for i, name in enumerate(names)}


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (50, 5), (40, 3, 2), (2, 100)])
def test_blocks_are_all_rows_once_and_in_order(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shard_writer, "BLOCK_ELEMENTS", 100)
    tensor = torch.arange(max(torch.Size(shape).numel(), 0)).view(shape)
    blocks = [tensor[rows if shape else ...] for rows in row_blocks(shape)]
    assert (torch.cat(blocks) if shape and blocks else tensor).equal(tensor)
    assert all(block.numel() <= 100 or len(block) <= shard_writer.ROWS_MULTIPLE for block in blocks)
    assert len(blocks) > 1 or tensor.numel() <= 200


def test_a_sum_that_overflows_is_no_infinite_value() -> None:
    import torch

    shard_writer.check_weights_finite(torch.full((4,), 6e4, dtype=torch.float16), "wide")
    shard_writer.check_weights_finite(torch.full((4,), 3e38), "wide")
    shard_writer.check_weights_finite(torch.full((4,), -128, dtype=torch.int8), "integers")
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match="thin has 1 non-finite values"):
            shard_writer.check_weights_finite(torch.tensor([1.0, float(value)]), "thin")
    with pytest.raises(ValueError, match="thin has 2 non-finite values"):
        shard_writer.check_weights_finite(torch.tensor([float("inf"), float("-inf")]), "thin")


def test_writing_gives_the_threads_of_torch_back(tmp_path: Path) -> None:
    import torch

    seen = []

    def blocks() -> list["torch.Tensor"]:
        seen.append(torch.get_num_threads())
        return [torch.ones(2)]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        write_shards(tmp_path, {FILE: [Output("one", "float32", (2,), blocks)]})
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


# bad files --------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(make_tensors(), tmp_path / FILE)
    return tmp_path / FILE


def test_a_file_cut_anywhere_is_named(file: Path) -> None:
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for size in (
        0,
        4,
        8,
        9,
        8 + length // 2,
        8 + length,
        8 + length + 1,
        len(whole) // 2 + length // 2,
        len(whole) - 1,
    ):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(f"{file} is truncated or no safetensors file")):
            Checkpoint(file.parent)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="not fully covered"):
        Checkpoint(file.parent)


def put_header(file: Path, header: bytes, data: bytes = b"") -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
    return json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


HEADERS = {
    "no-json": b"{weight",
    "no-text": b"\xff\xfe\x00",
    "list": b"[1, 2]",
    "number": b"17",
    "no-entry": b'{"weight": 3}',
    "no-offsets": b'{"weight": {"dtype": "F32", "shape": [2]}}',
    "one-offset": entry(offsets=[8]),
    "text-offsets": entry(offsets=["0", "8"]),
    "wrong-size": entry(shape=[3]),
    "negative-start": entry(offsets=[-8, 0]),
    "negative-shape": entry(shape=[-1, -2]),
    "fraction": entry(shape=[2.0]),
    "shape-is-a-number": entry(shape=2),
    "strange-dtype": entry(dtype="F3"),
    "past-the-end": entry(offsets=[8, 16]),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_corrupt_header_is_named(tmp_path: Path, kind: str) -> None:
    put_header(tmp_path / FILE, HEADERS[kind], bytes(8))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / FILE} is truncated or no safetensors file")):
        Checkpoint(tmp_path)


def test_the_headers_above_are_near_to_a_right_one(tmp_path: Path) -> None:
    put_header(tmp_path / FILE, entry(), bytes(8))
    assert Checkpoint(tmp_path).read("weight").tolist() == [0.0, 0.0]


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    put_header(tmp_path / FILE, json.dumps({"a": one, "b": one}).encode(), bytes(8))
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        Checkpoint(tmp_path)


@pytest.fixture
def sharded(pico_llm: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(pico_llm).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


def test_an_absent_shard_is_named(sharded: Path) -> None:
    first = sorted(sharded.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of \d+ shards, first {first.name}"):
        Checkpoint(sharded)


@pytest.mark.parametrize("change", ["another", "unknown"])
def test_an_index_that_does_not_say_what_shards_hold_is_named(sharded: Path, change: str) -> None:
    path = sharded / checkpoints.INDEX
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    name = "model.norm.weight" if change == "another" else "model.layers.9.weight"
    known = index["weight_map"].get(name, files[0])
    index["weight_map"][name] = next(file for file in files if file != known)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape(name)):
        Checkpoint(sharded)


def test_an_index_that_is_none_is_named(sharded: Path) -> None:
    for text in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'):
        (sharded / checkpoints.INDEX).write_text(text)
        with pytest.raises(ValueError, match="is no index of shards"):
            Checkpoint(sharded)


def test_an_index_cannot_lead_out_of_its_folder(sharded: Path, pico_llm: Path) -> None:
    (sharded / checkpoints.INDEX).write_text(json.dumps({"weight_map": {"a": f"../{pico_llm.name}/{FILE}"}}))
    with pytest.raises(ValueError, match="is no index of shards"):
        Checkpoint(sharded)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        Checkpoint(tmp_path)


# complete or absent -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(pico_llm: Path, with_lora: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "adapter"
    with_lora(pico_llm).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("after", [0, 1000, 200_000])
def test_a_full_disk_leaves_nothing(
    pico_llm: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The disk takes `after` bytes, the last call a part of what it was given, as write(2) does."""
    left = after
    write = os.write

    def fill(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, data[:left])
        left -= done
        return done

    monkeypatch.setattr(shard_writer.os, "write", fill)
    with pytest.raises(OSError, match="No space left on device"):
        merge_adapter(pico_llm, adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_when_it_is_synced_leaves_nothing(
    pico_llm: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shard_writer.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        merge_adapter(pico_llm, adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_said_before_anything_is_written(
    pico_llm: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    monkeypatch.setattr(shard_writer, "write_tensors", lambda *_: pytest.fail("something was written"))
    with pytest.raises(OSError, match=r"needs .* make room"):
        merge_adapter(pico_llm, adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_failed_merge_leaves_the_merge_before_as_it_was(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    merge_adapter(pico_llm, adapter, tmp_path / "merged")
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}

    def fill(folder: Path) -> None:
        (folder / FILE).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.make_folder(tmp_path / "merged", fill)
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_texts_of_a_model_are_copied_from_any_depth_but_not_ours_nor_hidden_ones(tmp_path: Path) -> None:
    copied = {"config.json", "tokenizer.model", "chat_template.jinja", "1_Pooling/config.json", "a/b/vocab.txt"}
    for name in {*copied, "adapter_config.json", "record.json", checkpoints.INDEX, ".cache/x.json", "a/w.bin"}:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    shard_writer.copy_text_files(tmp_path / "from", tmp_path / "to")
    made = {str(path.relative_to(tmp_path / "to")): path for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert made.keys() == copied and all(path.read_text() == name for name, path in made.items())


KILLED = """
import os, signal, sys
from pathlib import Path
from kaggle_llm.weights import shard_writer
from kaggle_llm.weights.merge import merge_adapter
write, calls = os.write, 0
def die(descriptor, data):
    global calls
    calls += 1
    done = write(descriptor, data[: len(data) // 2])
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
shard_writer.os.write = die
merge_adapter(*map(Path, sys.argv[1:]))
"""


def test_killed_in_the_middle_the_target_is_absent_and_the_next_start_makes_it(
    pico_llm: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    words = [forks.python(), "-c", KILLED, str(pico_llm), str(adapter), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists() and list(tmp_path.iterdir()), "killed while it wrote"
    merge_adapter(pico_llm, adapter, out)
    assert (out / "weights.json").is_file() and [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_product_in_blocks_of_rows_has_the_bits_of_the_whole_one() -> None:
    """93 rows of 5632 columns, as BLOCK_ELEMENTS allows, take another kernel: the last bit differed in 1 of 2000."""
    import torch

    torch.manual_seed(0)
    b, a = torch.randn(2048, 16), torch.randn(16, 5632)
    blocks = list(row_blocks((2048, 5632)))
    assert all((rows.stop - rows.start) % 16 == 0 for rows in blocks) and len(blocks) > 20
    assert torch.equal(torch.cat([torch.mm(b[rows], a) for rows in blocks]), b @ a)
