"""Every row gets a text of one line, whatever the model writes and whenever the time ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Completion, EngineSettings, Sampling
from kaggle_llm.inference.maker import make_engine
from kaggle_llm.inference.writing import WritingSettings, rank_texts, write_lines
from kaggle_llm.prompts import Prompter, PromptSettings, load_tokenizer

SETTINGS = WritingSettings(max_tokens=8, spare="Nothing was said.", spare_words=3)


class Scripted:
    """An engine that writes the same texts in turn, and a clock that each call puts forward by 10 s."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.time, self.asked = texts, 0.0, 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        self.time += 10
        start, self.asked = self.asked, self.asked + len(prompts)
        return [[Completion(self.texts[(start + n) % len(self.texts)])] for n in range(len(prompts))]


@pytest.fixture
def prompter(pico_llm: Path) -> Prompter:
    return Prompter(load_tokenizer(pico_llm), PromptSettings("{chat}\nIn short:", chat=False))


def rows(count: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{n}" for n in range(count)], "chat": [f"Tom adds {n} and 2 to it." for n in range(count)]}
    )


def test_the_first_line_that_says_something_is_the_answer(prompter: Prompter) -> None:
    engine = Scripted("\n\n  It is 7. \nAnd so on", " plain", "   \n")
    assert write_lines(rows(3), prompter, engine, SETTINGS, Budget()) == ["It is 7.", "plain", ""]
    assert write_lines(rows(0), prompter, engine, SETTINGS, Budget()) == []


def test_rows_without_a_line_have_their_own_first_words_and_else_the_spare_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = rows(3).with_columns(chat=pl.Series(["Tom adds 1 and 2", "so", " \t "]))
    found = rank_texts(table, ["written", "", ""], "chat", SETTINGS)
    assert found["items"].to_list() == [["written"], ["so"], ["Nothing was said."]]
    assert rank_texts(table, ["", "", ""], "chat", SETTINGS)["items"][0].to_list() == ["Tom adds 1"]
    assert "2 row(s) without a written text have a spare one, first ['r1', 'r2']" in capsys.readouterr().out


def test_a_spare_text_of_one_endless_word_is_cut() -> None:
    table = pl.DataFrame({"id": ["r"], "chat": ["x" * 200_000]})
    assert len(rank_texts(table, [""], "chat", SETTINGS)["items"][0][0]) == 1000


def test_where_the_time_ends_the_rest_is_empty_and_what_there_was_is_offered(prompter: Prompter) -> None:
    engine, offers = Scripted("text"), list[list[str]]()
    budget = Budget(25, clock=lambda: engine.time)
    lines = write_lines(rows(100), prompter, engine, SETTINGS, budget, lambda found: offers.append(list(found)))
    assert lines == ["text"] * 64 + [""] * 36 and budget.cuts == {"writing": 36}
    assert [len(offer) for offer in offers] == [100, 100] and offers[0].count("text") == 32


def test_a_row_is_written_for_alone_as_among_others(prompter: Prompter, pico_llm: Path) -> None:
    engine = make_engine(pico_llm, EngineSettings())
    together = write_lines(rows(5), prompter, engine, SETTINGS, Budget())
    alone = [write_lines(row, prompter, engine, SETTINGS, Budget())[0] for row in rows(5).iter_slices(1)]
    engine.close()
    assert together == alone and any(together)
