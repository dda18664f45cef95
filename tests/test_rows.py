"""Rows drawn of a test.csv: so many, each once before any twice, the same ones every time."""

from __future__ import annotations

import polars as pl
import pytest

from kaggle_llm.kaggle.rows import draw_rows, rename_rows

TEST = pl.DataFrame({"row": ["a", "b", "c"], "text": ["x", "y", "z"]})


@pytest.mark.parametrize("rows", [0, 1, 3, 7])
def test_rows_are_drawn_whole_and_repeated_under_new_ids(rows: int) -> None:
    drawn, names = draw_rows(TEST, "row", rows)
    assert drawn.height == rows and drawn["row"].to_list() == names["id"].to_list()
    assert names["id"].n_unique() == rows
    assert names["old"].head(3).n_unique() == min(rows, 3), "each once before any twice"
    for position, (new, old) in enumerate(names.iter_rows()):
        assert new == (old if position < 3 else f"{old}-{position // 3}")
    texts = dict(TEST.iter_rows())
    assert drawn["text"].to_list() == [texts[old] for old in names["old"]]
    assert draw_rows(TEST, "row", rows)[0].equals(drawn), "a fixed seed"


def test_whole_numbers_stay_whole_numbers() -> None:
    drawn, names = draw_rows(pl.DataFrame({"row": ["7", "12", "0"], "text": ["x", "y", "z"]}), "row", 7)
    assert set(drawn["row"][:3]) == {"7", "12", "0"} and drawn["row"][3:].to_list() == ["13", "14", "15", "16"]
    assert names["old"][3:6].sort().to_list() == ["0", "12", "7"]


def test_a_frame_has_its_rows_once_for_every_new_name() -> None:
    names = pl.DataFrame({"id": ["b", "a", "b-1"], "old": ["b", "a", "b"]})
    found = rename_rows(pl.DataFrame({"id": ["a", "b", "c"], "items": [1, 2, 3]}), names)
    assert found.select("id", "items").rows() == [("b", 2), ("a", 1), ("b-1", 2)]


def test_no_row_of_none_can_be_drawn() -> None:
    assert draw_rows(TEST.head(0), "row", 5)[0].height == 0
