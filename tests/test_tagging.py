"""Tags of texts: every row once, whatever is asked together; what has no token, no time or no rule is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from kaggle_llm.competition.spans import Span, WindowSettings
from kaggle_llm.decisions.outside import OutsideThreshold
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference import progress
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks import tags
from kaggle_llm.tasks.tags import Tagger, TagSettings, find_by_rules, list_tags, tag_by_rules, tag_texts

TAGS = TagSettings(["PER", "LOC"]).tags
TEXTS = [
    "Tom adds 247 and 138",
    "",
    "Which fraction is bigger, 2/3 or 3/5? " * 6,
    " \t ",
    "\u200b\ufeff",
    "Yes, he does",
]
ROOT = Path(__file__).resolve().parents[1]
RULES = [rules for path in ROOT.glob("exp/*/config.yaml") if (rules := yaml.safe_load(path.read_text()).get("rules"))]


@pytest.fixture(scope="module")
def tagger(pico_encoder: Path) -> Tagger:
    return Tagger(load_tokenizer(pico_encoder), TAGS, WindowSettings(24, 8), "text")


@pytest.fixture(scope="module")
def engine(pico_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random head on the pico encoder."""
    import torch
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("head")
    base = pico_encoder.with_name("pico-bert")
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(TAGS))
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.save_pretrained(folder)
    load_tokenizer(pico_encoder).save_pretrained(folder)
    return make_engine(folder, EngineSettings())


def make_rows(texts: Sequence[str] = TEXTS) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{n}" for n in range(len(texts))], "text": texts}, schema_overrides={"id": pl.String})


class Saying:
    """An engine that says what it was told, as if it were sure."""

    def __init__(self, labels: dict[tuple[int, ...], list[int]]) -> None:
        self.labels = labels

    def logits(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        rows = [np.maximum(self.labels[tuple(prompt)], 0) for prompt in prompts]
        return [9.0 * np.eye(len(TAGS))[row] for row in rows]


def test_what_is_labelled_for_training_comes_back_in_prediction(tagger: Tagger) -> None:
    rows = make_rows(["Tom adds 247", "and Yes, he does", TEXTS[2], ""])
    items = [["0:3:PER", "9:12:LOC"], [], ["0:14:LOC", "82:90:PER", "120:138:PER"], []]
    labelled = tagger.label(rows, items)
    assert len(labelled) > 5, "the third text has several windows, the last has none"
    engine: Any = Saying({tuple(window.ids): labels for window, labels in labelled})
    found = OutsideThreshold(0.5).apply(tag_texts(rows, tagger, engine, Budget()))
    assert [sorted(row) for row in found["items"].to_list()] == [sorted(row) for row in items]


def test_rows_are_the_same_alone_and_among_others_and_in_chunks(
    tagger: Tagger, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows()
    whole = tag_texts(rows, tagger, engine, Budget())
    monkeypatch.setattr(tags, "ROWS_A_CHUNK", 2)
    parts = tag_texts(rows, tagger, engine, Budget())
    alone = pl.concat([tag_texts(row, tagger, engine, Budget()) for row in rows.iter_slices(1)])
    assert whole["id"].to_list() == rows["id"].to_list()
    for other in (parts, alone):
        assert other.drop("outside", "scores").equals(whole.drop("outside", "scores"))
        for name in ("outside", "scores"):
            assert np.allclose(other[name].explode().drop_nulls(), whole[name].explode().drop_nulls(), atol=1e-5)


def test_log_probabilities_are_of_the_tokens_own_tags(tagger: Tagger, engine: Any) -> None:
    (text,) = texts = ["Tom adds 247"]
    (logits,) = engine.logits([tagger.tokenizer(text)["input_ids"]])
    (_, _, found) = next(list_tags(tag_texts(make_rows(texts), tagger, engine, Budget())))
    expected = logits[1:-1] - np.log(np.exp(logits[1:-1]).sum(axis=1, keepdims=True))
    first = [place for place, offset in enumerate(found.offsets) if found.offsets.index(offset) == place]
    assert len(found.offsets) == len(first) == len(expected)
    assert np.allclose(found.outside, expected[:, 0], atol=1e-4)
    assert np.allclose(found.scores, expected[:, 1:].max(axis=1), atol=1e-4)
    assert found.tags == [TAGS[1 + place] for place in expected[:, 1:].argmax(axis=1)]
    assert "".join(text[start:end] for start, end in found.offsets) == "Tomadds247"


def test_texts_without_a_token_are_told(tagger: Tagger, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = OutsideThreshold(0.5).apply(tag_texts(make_rows(), tagger, engine, Budget()))
    assert "row(s) whose text has no token, first ['r1', 'r3'" in capsys.readouterr().out
    assert found["items"].to_list()[1] == found["items"].to_list()[3] == []


def test_no_rows_are_no_rows(tagger: Tagger, engine: Any) -> None:
    found = tag_texts(make_rows([]), tagger, engine, Budget())
    assert found.schema == tags.tagged_schema() and found.height == 0
    assert OutsideThreshold(0.5).apply(found).columns == ["id", "items", "scores"]


def test_what_the_time_cuts_is_missing_and_counted(
    tagger: Tagger, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes a second; there is time for some chunks of one row."""
    monkeypatch.setattr(tags, "ROWS_A_CHUNK", 1)
    seconds = iter(range(1000))
    budget = Budget(9.0, clock=lambda: float(next(seconds)))
    found = tag_texts(make_rows(), tagger, engine, budget)
    assert 0 < found.height < len(TEXTS)
    assert found["id"].to_list() == [f"r{n}" for n in range(found.height)]
    assert dict(budget.cuts) == {"tagging": len(TEXTS) - found.height}


def test_what_there_is_so_far_is_shown(tagger: Tagger, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "ROWS_A_CHUNK", 2)
    monkeypatch.setattr(progress, "OFFER_SECONDS", 0.0)
    shown: list[pl.DataFrame] = []
    seconds = iter(range(1000))
    budget = Budget(clock=lambda: float(next(seconds)))
    found = tag_texts(make_rows(), tagger, engine, budget, shown.append)
    assert [part.height for part in shown] == [2, 4, 6]
    assert shown[-1].equals(found) and all(part.equals(found.head(part.height)) for part in shown)
    whole = tag_texts(make_rows(), tagger, engine, Budget())
    decide = OutsideThreshold(0.9).apply
    assert decide(found).equals(decide(whole)) and decide(shown[0]).equals(decide(whole).head(2))


def test_rules_find_what_begins_first_and_nothing_twice() -> None:
    rules = {"NUMBER": r"\d+", "WORD": r"[a-z]+|\d+x", "NOTHING": r"q*"}
    assert find_by_rules("ab 12x 3", rules) == [Span(0, 2, "WORD"), Span(3, 5, "NUMBER"), Span(7, 8, "NUMBER")]
    found = tag_by_rules(make_rows(["a1", "", "Q"]), "text", rules)
    assert found["items"].to_list() == [["0:1:WORD", "1:2:NUMBER"], [], []]


@pytest.mark.parametrize("text", ["x", "1", "A1 ", "a@", "1 ", ".", "+(", "Aa ", "A. ", "1a Aa Aa, ", "12.", "\u00e9"])
def test_the_rules_of_experiments_end_on_long_texts(text: str) -> None:
    """A repetition without a bound reads a text of one word again from every letter of it."""
    assert RULES, "an experiment has rules"
    seconds = []
    for letters in (20_000, 100_000):
        start = time.process_time()
        for rules in RULES:
            find_by_rules(text * (letters // len(text)), rules)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 15 * seconds[0], "five times the text; 25 times as long where letters are read again"
