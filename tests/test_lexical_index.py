"""BM25's index as an artefact: made once for the same texts, settings and code, read elsewhere, and shipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_llm.inference.cache import clear_cache, list_entries
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run
from kaggle_llm.inference.vectors import link_index
from kaggle_llm.retrieval import lexical
from kaggle_llm.retrieval.lexical import LexicalIndex, WordSettings, describe_index, open_lexical

IDS = ["d1", "d2", "d3", "d4"]
TEXTS = ["adds numerators adds", "forgets carrying digit", "", "digit digit confusion über 数"]
QUERIES = ["digit", "adds digit", "unheard", "", "über", "数"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every index that is made, not read."""
    counted: list[int] = []
    make = LexicalIndex._make_index

    def count(index: LexicalIndex, texts: list[str]) -> Any:
        counted.append(len(texts))
        return make(index, texts)

    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    monkeypatch.setattr(LexicalIndex, "_make_index", count)
    return counted


def open_run(root: Path, keep_for: str = "", models: list[Model] | None = None) -> Run:
    competition: Any = SimpleNamespace(folder=root / "input" / "some")
    return Run(SimpleNamespace(), competition, models or [], keep_for=keep_for)


def search(index: LexicalIndex) -> list[Any]:
    return index.search([f"q{n}" for n in range(len(QUERIES))], QUERIES, 4).rows()


def test_a_kept_index_is_made_once_read_from_disk_and_finds_the_same(tmp_path: Path, made: list[int]) -> None:
    fresh = search(LexicalIndex(IDS, TEXTS))
    first = open_lexical(open_run(tmp_path, "a"), IDS, TEXTS, WordSettings())
    again = open_lexical(open_run(tmp_path, "b"), IDS, TEXTS, WordSettings())
    assert made == [4, 4], "without a run, and for the first run"
    assert search(first) == search(again) == fresh
    assert isinstance(again._index.scores["data"], np.memmap)


def test_other_texts_settings_or_code_make_another_index(
    tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path, "a")
    open_lexical(run, IDS, TEXTS, WordSettings())
    for texts, words in ((TEXTS[::-1], WordSettings()), (TEXTS, WordSettings(stop_words=""))):
        open_lexical(run, IDS, texts, words)
    monkeypatch.setattr(lexical, "hash_code", lambda *_, **__: "edited")
    open_lexical(run, IDS, TEXTS, WordSettings())
    assert made == [4] * 4
    assert describe_index(["ab", "c"], WordSettings()) != describe_index(["a", "bc"], WordSettings())


def test_a_shipped_index_is_read_and_one_of_other_documents_is_made_again(
    tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    training = open_run(tmp_path, "a")
    fresh = search(open_lexical(training, IDS, TEXTS, WordSettings()))
    link_index(tmp_path / "lexical_index", training.artefacts["lexical"])
    shipped = [Model("lexical_index", tmp_path / "lexical_index")]
    assert search(open_lexical(open_run(tmp_path, "", shipped), IDS, TEXTS, WordSettings())) == fresh
    assert made == [4] and capsys.readouterr().out == "lexical: the shipped index is read\n"
    open_lexical(open_run(tmp_path, "", shipped), IDS[:2], TEXTS[:2], WordSettings())
    assert made == [4, 2] and "lexical: the shipped index is of other documents" in capsys.readouterr().out
    open_lexical(open_run(tmp_path), IDS, TEXTS, WordSettings())
    assert made == [4, 2, 4] and len(list_entries()) == 1, "nothing is kept in a prediction"


def test_an_index_that_fails_leaves_nothing_and_the_next_start_makes_it(
    tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: LexicalIndex, folder: Path, about: Any) -> None:
        (folder / "data.csc.index.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    run = open_run(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(LexicalIndex, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            open_lexical(run, IDS, TEXTS, WordSettings())
    open_lexical(run, IDS, TEXTS, WordSettings())
    assert made == [4] * 2 and (run.artefacts["lexical"] / "index.json").is_file()


def test_the_cache_lists_and_clears_an_index(tmp_path: Path, made: list[int]) -> None:
    run = open_run(tmp_path, "a")
    open_lexical(run, IDS, TEXTS, WordSettings())
    folder = run.artefacts["lexical"]
    (entry,) = list_entries()
    assert (entry.kind, entry.model, list(entry.runs)) == ("lexical", "input/some", ["a"])
    assert entry.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert clear_cache(keep=0.0) == [entry]
    assert not folder.exists() and not list(folder.parent.iterdir())
