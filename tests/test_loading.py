"""What of a prediction's time went into loading, in whatever processes; and large files that are hashed meanwhile."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.loading import LOADS_VARIABLE, count_loading, note_loading
from kaggle_llm.engines.pool import WorkerPool
from kaggle_llm.kaggle import predict
from kaggle_llm.kaggle.predict import check_files, hash_beside


def test_loads_within_and_beside_each_other_count_once(tmp_path: Path) -> None:
    notes = tmp_path / "loads"
    notes.write_text("10 20\n12 15\n18 25\n40 41.5\n40 41\n")
    assert count_loading(notes) == 15 + 1.5
    notes.write_text("")
    assert count_loading(notes) == 0


def test_a_load_is_noted_where_somebody_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOADS_VARIABLE, raising=False)
    with note_loading():
        pass
    monkeypatch.setenv(LOADS_VARIABLE, str(tmp_path / "loads"))
    with note_loading():
        threading.Event().wait(0.1)
    assert 0.1 <= count_loading(tmp_path / "loads") < 5


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("fast_python")
def test_a_pool_s_workers_note_their_loads(pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They load at the first prompts, not when the engine is made."""
    monkeypatch.setenv(LOADS_VARIABLE, str(tmp_path / "loads"))
    pool = WorkerPool(pico_llm, EngineSettings(kind="transformers"), None, [[]])
    assert not (tmp_path / "loads").exists()
    for _ in range(2):
        pool.choices([(1, 2)], [(3,), (4,)])
    pool.close()
    assert len((tmp_path / "loads").read_text().splitlines()) == 1 and count_loading(tmp_path / "loads") > 0


def test_a_large_file_is_hashed_beside_and_named_also_where_the_engine_fails_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "HASHED_BELOW", 10)
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "large").write_bytes(b"large enough")
    entries = [
        {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in (("small", b"small"), ("large", b"large enough"))
    ]
    large = check_files(tmp_path, entries)
    assert [path.name for path, _ in large] == ["large"]
    with hash_beside(large) as finish:
        finish()
    (tmp_path / "large").write_bytes(b"large enouGh")
    with pytest.raises(ValueError, match=r"large is not the file of the manifest"), hash_beside(large) as finish:
        finish()
    with pytest.raises(ValueError, match=r"large is not the file of the manifest"), hash_beside(large):
        raise RuntimeError("header too large")
    (tmp_path / "large").write_bytes(b"large enough")
    with pytest.raises(RuntimeError, match="out of memory"), hash_beside(large):
        raise RuntimeError("out of memory")
