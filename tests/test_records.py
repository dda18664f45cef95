"""Artefacts: keys, content hashes, and that a kill, an error or a full disk leaves nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kaggle_llm.base import records


def fill(text: str):
    def make(folder: Path) -> None:
        (folder / "a.txt").write_text(text)

    return make


def seal(folder: Path) -> None:
    files = records.hash_files(folder)
    records.write_record(folder, records.make_record("kind", {"a": 1}, {"b": "c"}, 0, files, 0.1))


def test_the_key_depends_on_kind_settings_inputs_and_seed_only() -> None:
    key = records.step_key("adapter", {"r": 16, "alpha": 32}, {"rows": "x"}, 0)
    assert key == records.step_key("adapter", {"alpha": 32, "r": 16}, {"rows": "x"}, 0)
    others = [
        records.step_key("merged", {"r": 16, "alpha": 32}, {"rows": "x"}, 0),
        records.step_key("adapter", {"r": 8, "alpha": 32}, {"rows": "x"}, 0),
        records.step_key("adapter", {"r": 16, "alpha": 32}, {"rows": "y"}, 0),
        records.step_key("adapter", {"r": 16, "alpha": 32}, {"rows": "x"}, 1),
    ]
    assert len({key, *others}) == 5


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    records.make_folder(tmp_path / "a", fill("x"), seal)
    record = records.read_record(tmp_path / "a")
    assert record is not None and record.files == {"a.txt": records.hash_file(tmp_path / "a" / "a.txt")}
    assert record.key == records.step_key("kind", {"a": 1}, {"b": "c"}, 0)
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_content_hash_is_that_of_the_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fill("same")(tmp_path / name)
    assert records.hash_content(tmp_path / "a") == records.hash_content(tmp_path / "b")
    fill("other")(tmp_path / "b")
    assert records.hash_content(tmp_path / "a") != records.hash_content(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="missing"):
        records.hash_content(tmp_path / "missing")


def test_a_failed_make_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill("half")(folder)
        raise OSError("disk")

    records.make_folder(tmp_path / "a", fill("old"), seal)
    with pytest.raises(OSError, match="disk"):
        records.make_folder(tmp_path / "a", fail, seal)
    assert (tmp_path / "a" / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """The system refuses the write (a limit on the size of files stands in for the disk)."""
    code = f"""
import resource
from pathlib import Path
from kaggle_llm.base import records
target = Path({str(tmp_path / "a")!r})
records.make_folder(target, lambda f: (f / "x").write_text("old"), lambda f: None)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    records.make_folder(target, lambda f: (f / "x").write_bytes(bytes(5000)), lambda f: None)
except OSError as error:
    print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "refused" in done.stdout
    assert (tmp_path / "a" / "x").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_kill_in_the_middle_is_never_read_and_the_next_start_makes_it(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from kaggle_llm.base import records
def make(folder):
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
records.make_folder(Path({str(tmp_path / "a")!r}), make, lambda folder: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not (tmp_path / "a").exists() and records.read_record(tmp_path / "a") is None
    records.make_folder(tmp_path / "a", fill("whole"), seal)
    assert sorted(os.listdir(tmp_path / "a")) == ["a.txt", "record.json"] and os.listdir(tmp_path) == ["a"]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        records.write_json(path, {"a": object()})
    assert records.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The old artefact is aside, the new one not yet in its place: the next start puts the old one back."""
    records.make_folder(tmp_path / "a", fill("old"), seal)
    (tmp_path / "a").rename(tmp_path / ".a.old")

    def fail(folder: Path) -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        records.make_folder(tmp_path / "a", fail, seal)
    assert (tmp_path / "a" / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_model_without_a_record_is_hashed_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"one")
    first = records.hash_content(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"other")
    assert records.hash_content(tmp_path) != first
