"""The hostile test set: what is in it, read back by the csv module and by the competition."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from kaggle_llm.competition.competition import TEST, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.competition.table import Table
from kaggle_llm.kaggle.rows import make_ids
from kaggle_llm.rehearsal.hostile import HUGE_BYTES, make_hostile_test

COLUMNS = ["id", "subject", "question", "correct_answer", "wrong_answer"]
HEALTHY = pl.DataFrame(
    [[f"h{n}", "maths", f"What is {n}, {n}?", str(n), None] for n in range(3)], COLUMNS, orient="row"
)


def write_competition(folder: Path) -> Competition:
    folder.mkdir()
    (folder / "misconceptions.csv").write_text("misconception_id,text\nM1,adds\nM2,forgets\n")
    HEALTHY.write_csv(folder / "test.csv")
    return load_competition(CompetitionSettings("demo-misconceptions"), folder)


@pytest.fixture
def competition(tmp_path: Path) -> Competition:
    return write_competition(tmp_path / "demo")


def make_hostile(competition: Competition, healthy: pl.DataFrame, known: set[str]) -> tuple[bytes, int]:
    files, hostile = make_hostile_test(competition, StagedTest("test.csv", healthy), known)
    return files["test.csv"], hostile


def test_every_kind_is_there_beside_the_healthy_rows(competition: Competition) -> None:
    content, hostile = make_hostile(competition, HEALTHY, set(HEALTHY["id"]))
    csv.field_size_limit(2 * HUGE_BYTES)
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert len(rows) == hostile + 3 and len({row["id"] for row in rows}) == len(rows)
    assert [row["id"] for row in rows if row["id"].startswith("h")] == ["h0", "h1", "h2"]
    assert {row["subject"] for row in rows} == {"maths"}, "only texts are exchanged"
    texts = [row["question"] for row in rows if not row["id"].startswith("h")]
    assert texts.count("") == 2 and max(len(text.encode()) for text in texts) >= HUGE_BYTES
    assert texts.count(HEALTHY["question"][0]) == 2, "duplicates of a healthy row's text"
    whole = "".join(texts)
    assert all(sign in whole for sign in ("\u202e", "\u0301\u0301", "\u200d", "👧", '"', "\n", "\r\n", "M1-never-seen"))
    assert any(text != text.strip() for text in texts)


def test_the_file_has_windows_line_ends_and_ids_with_leading_zeros(competition: Competition) -> None:
    content, hostile = make_hostile(competition, HEALTHY, set(HEALTHY["id"]))
    assert content.startswith(b'"id","subject","question","correct_answer","wrong_answer"\r\n') and content.endswith(
        b"\r\n"
    )
    assert b'"h1","maths","What is 1, 1?","1",\r\n' in content, "null has no quotes"
    (competition.folder / "test.csv").write_bytes(content)
    table = competition.table(TEST)
    assert table["id"].to_list()[0] == "000" and table.height == hostile + 3
    healthy = table.filter(pl.col("id").str.starts_with("h"))
    expected = HEALTHY.drop("subject").with_columns(pl.col("wrong_answer").cast(pl.String).fill_null(""))
    assert healthy.equals(expected)
    assert table["wrong_answer"].to_list().count("") == 2 + 3, "no carriage return is left behind"


def test_new_ids_are_of_the_known_ones_kind() -> None:
    assert make_ids(["7", "0"], {"7", "12", "0"}, 3) == ["13", "14", "15"]
    assert make_ids(["007"], {"007", "000"}, 2) == ["001", "002"]
    assert make_ids(["a"], {"a", "7"}, 2) == ["000", "001"]
    assert make_ids(["7"], {"7", "9", "train-1"}, 2) == ["10", "11"], "whatever train.csv's ids are"


class Wide(Competition):
    """Two rows of a table for each of test.csv."""

    tables: ClassVar = {"test": Table("id", ("question", "answer")), "misconceptions": Table("id", ("text",))}
    documents = "misconceptions"

    def read(self, name: str) -> pl.DataFrame:
        raw = super().read(name)
        if name != TEST:
            return raw.rename({"misconception_id": "id"})
        parts = [raw.select(pl.col("row") + f"_{a}", "question", answer=a).rename({"row": "id"}) for a in "AB"]
        return pl.concat(parts)


def test_a_competition_that_reshapes_keeps_its_rows(competition: Competition) -> None:
    wide = Wide(competition.settings, competition.folder)
    healthy = pl.DataFrame({"row": ["1", "2"], "question": ["a,b", "c"], "A": ["x", None], "B": ["z", "w"]})
    content, hostile = make_hostile(wide, healthy, set())
    (wide.folder / "test.csv").write_bytes(content)
    assert hostile == 0
    assert wide.table(TEST).rows() == [("1_A", "a,b", "x"), ("2_A", "c", ""), ("1_B", "a,b", "z"), ("2_B", "c", "w")]
