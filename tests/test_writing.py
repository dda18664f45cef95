"""Texts that a model writes: the first line of each row, in order and alone as among others; none is left without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.rankings import check_ranking
from kaggle_llm.engines.engine import Completion, EngineSettings, LengthError, Sampling
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import OFFER_SECONDS
from kaggle_llm.tasks.writing import (
    MAX_SPARE_CHARACTERS,
    ROWS_A_CHUNK,
    WritingSettings,
    rank_first_words,
    rank_texts,
    write_lines,
)

SETTINGS = WritingSettings(max_tokens=12, spare="nothing was said", spare_words=3)


class Says:
    """An engine that says the texts in turn, `seconds` for each on the clock that it is."""

    def __init__(self, texts: Sequence[str], seconds: float = 0.0) -> None:
        self.texts, self.seconds, self.now = list(texts), seconds, 0.0
        self.calls: list[tuple[int, Sampling]] = []

    def __call__(self) -> float:
        return self.now

    def generate(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Completion]]:
        self.calls.append((len(prompts), sampling))
        self.now += self.seconds * len(prompts)
        said, self.texts = self.texts[: len(prompts)], self.texts[len(prompts) :]
        return [[Completion(text)] for text in said]


@pytest.fixture(scope="module")
def prompter(pico_llm: Path) -> Prompter:
    return Prompter(load_tokenizer(pico_llm), PromptSettings("{text}\n", chat=False, budgets={"text": 40}))


def rows_of(texts: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{n}" for n in range(len(texts))], "text": texts}, {"id": pl.String, "text": pl.String}
    )


def test_the_first_line_that_is_not_empty_is_taken(prompter: Prompter, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Says([" One.\nTwo.", "\n\n  Three. \r\nFour.", " \n ", "Five"])
    assert write_lines(rows_of(["x"] * 4), prompter, engine, SETTINGS, Budget()) == ["One.", "Three.", "", "Five"]
    assert "1 row(s) for which nothing was written, first ['r2']" in capsys.readouterr().out
    assert engine.calls == [(4, Sampling(12))]


def test_no_rows_have_no_lines(prompter: Prompter) -> None:
    assert write_lines(rows_of([]), prompter, Says([]), SETTINGS, Budget()) == []
    assert rank_texts(rows_of([]), [], "text", SETTINGS).height == 0


def test_what_the_time_cuts_has_no_line_and_is_counted(prompter: Prompter) -> None:
    count = 3 * ROWS_A_CHUNK
    engine = Says(["a line"] * count, seconds=1.0)
    budget = Budget(2.5 * ROWS_A_CHUNK, 0.0, engine)
    lines = write_lines(rows_of(["x"] * count), prompter, engine, SETTINGS, budget)
    assert lines == ["a line"] * 2 * ROWS_A_CHUNK + [""] * ROWS_A_CHUNK
    assert budget.cuts == {"writing": ROWS_A_CHUNK}
    assert [size for size, _ in engine.calls] == [ROWS_A_CHUNK, ROWS_A_CHUNK]


def test_what_there_is_so_far_is_told_now_and_then_for_all_rows(prompter: Prompter) -> None:
    count, told = 4 * ROWS_A_CHUNK, []
    engine = Says([f"line {n}" for n in range(count)], seconds=OFFER_SECONDS / ROWS_A_CHUNK / 1.9)
    budget = Budget(1e6, 0.0, engine)
    lines = write_lines(rows_of(["x"] * count), prompter, engine, SETTINGS, budget, told.append)
    assert lines == [f"line {n}" for n in range(count)]
    assert told == [lines[: 2 * ROWS_A_CHUNK] + [""] * 2 * ROWS_A_CHUNK, lines]


def test_a_row_whose_prompt_is_too_long_is_named(prompter: Prompter) -> None:
    class Short(Says):
        def generate(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Completion]]:
            raise LengthError(1, 50, 40, Path("tiny"))

    with pytest.raises(ValueError, match=r"row 'r1': prompt 1 has 50 tokens, tiny takes 1 to 40: set prompt.budgets"):
        write_lines(rows_of(["x", "y"]), prompter, Short([]), SETTINGS, Budget())


def test_lines_are_those_of_transformers_greedy_generation(pico_llm: Path, prompter: Prompter) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = rows_of(["Tom adds 247 and 138.", "Is three quarters 0.75?", "Yes"])
    model = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32).eval()
    expected = []
    for row in rows.iter_rows(named=True):
        ids = torch.tensor([prompter.row(row)])
        out = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        text = prompter.tokenizer.decode(out, skip_special_tokens=True)
        expected.append(([line.strip() for line in text.splitlines() if line.strip()] or [""])[0])
    engine = make_engine(pico_llm, EngineSettings())
    assert any(expected)
    assert write_lines(rows, prompter, engine, SETTINGS, Budget()) == expected


def test_a_row_has_the_same_line_alone_and_among_others(pico_llm: Path, prompter: Prompter) -> None:
    rows = rows_of(["", "Tom adds 247 and 138 and forgets to carry.", "x" * 60, "No. " * 30, "👩‍👩‍👧‍👦 \u202eמה"])
    engine = make_engine(pico_llm, EngineSettings(batch_tokens=256))
    alone = [write_lines(row, prompter, engine, SETTINGS, Budget())[0] for row in rows.iter_slices(1)]
    assert write_lines(rows, prompter, engine, SETTINGS, Budget()) == alone
    assert write_lines(rows, prompter, engine, SETTINGS, Budget(1e6, 0.0)) == alone


def test_a_row_without_a_line_has_its_own_first_words_or_the_spare_text() -> None:
    rows = rows_of(["is written", "one two  three four", "", " \t ", "x" * 200_000])
    ranking = check_ranking(rank_texts(rows, ["A line.", "", "", "", ""], "text", SETTINGS), rows["id"].to_list())
    spare = "nothing was said"
    assert ranking["items"].to_list() == [
        ["A line."],
        ["one two three"],
        [spare],
        [spare],
        ["x" * MAX_SPARE_CHARACTERS],
    ]
    assert ranking["scores"].to_list() == [[0.0]] * 5


def test_a_line_that_kaggle_reads_as_an_empty_cell_is_no_line() -> None:
    rows = rows_of(["one two", "NA", "x"])
    assert rank_texts(rows, ["None", "null", "NA one"], "text", SETTINGS)["items"].to_list() == [
        ["one two"],
        ["nothing was said"],
        ["NA one"],
    ]


@pytest.mark.parametrize("spare", ["", " ", "NA"])
def test_a_spare_text_has_to_be_given_also_where_no_row_needs_it(spare: str) -> None:
    with pytest.raises(ValueError, match=r"writing.spare = '( |NA)?': give a text for rows without any words"):
        rank_texts(rows_of(["x"]), ["a line"], "text", WritingSettings(spare=spare))


def test_the_simplest_rule_takes_the_first_words_of_every_row() -> None:
    ranking = rank_first_words(rows_of(["one two three four", ""]), "text", SETTINGS)
    assert ranking["items"].to_list() == [["one two three"], ["nothing was said"]]
