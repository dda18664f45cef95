"""A CSV is read as pandas reads it, or refused with the line."""

import random
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.csv_table import ROWS_A_CHUNK, read_csv
from kaggle_llm.competition.table import Table


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "test.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_as_pandas(path: Path) -> list[tuple[str | None, ...]]:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""]).dropna(how="all")
    return [tuple(None if pd.isna(cell) else cell for cell in row) for row in frame.itertuples(index=False)]


@pytest.mark.parametrize(
    "rows",
    [
        '1,plain\n2,a 5" pipe\n3,a 6" nail\n',
        '1,plain\n2,a 5" pipe\n3,plain\n',
        '2,say "yes" now\n4,"a, b"\n5,"two\nlines"\n',
        '1,"a ""quoted"" word"\n2,"behind" it\n3,""\n',
        '1,x"\n2,"\n3,y"\n',
        "1,a\n\n2,b\n   \n3,c\n\n\n",
        "1,a\r\n2,b\r\n\r\n",
        "1,a\r2,b\r",
        "1,a\n2,b\n,\n , \n",
        "1\n2,b\n",
        "1, a \n2,\x00\n",
        "",
    ],
)
@pytest.mark.parametrize("head", ["id,text\n", "\n\nid,text\n", "\ufeffid,text\r\n"], ids=["plain", "blank", "bom"])
def test_a_table_is_read_as_pandas_reads_it(tmp_path: Path, head: str, rows: str) -> None:
    path = write(tmp_path, head + rows)
    expected = [row for row in read_as_pandas(path) if any((cell or "").strip() for cell in row)]
    assert read_csv(path).columns == ["id", "text"] and read_csv(path).rows() == expected


def test_random_texts_are_read_as_pandas_reads_them_and_as_they_were_written(tmp_path: Path) -> None:
    rng, pieces = random.Random(0), ["word", '"', ",", "\n", " ", "é", "語", "\\", "'", "\t", "#", "NA"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(2 * ROWS_A_CHUNK + 3)]
    frame = pl.DataFrame({"id": [str(number) for number in range(len(texts))], "text": texts})
    frame.write_csv(tmp_path / "test.csv")
    assert read_csv(tmp_path / "test.csv").equals(frame)
    stray = "".join(f"{number},{text}\n" for number, text in enumerate(texts) if not {*text} & {",", "\n"})
    path = write(tmp_path, "id,text\n" + stray.replace(',"', ',x"'))
    assert read_csv(path).rows() == read_as_pandas(path)


def test_a_text_of_any_length_is_read(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "id,text\n1," + "x" * 1_000_000)).rows() == [("1", "x" * 1_000_000)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,text\n1,a\n\n2,b,c\n", "line 4 has 3 fields, the header 2"),
        ('id,text\n1,"a\nb"\n2,b,c\n', "line 4 has 3 fields, the header 2"),
        ('id,text\n1,a\n2,"b\n3,c\n', "the row in line 3 has a quote that is never closed"),
        ('id,text\n"1', "the row in line 2 has a quote that is never closed"),
        ("id,text\n1,a\n2,\xe9\n".encode("latin-1"), "line 3 has a byte 0xe9 that is not UTF-8"),
        ("\n \n", "it is empty"),
    ],
)
def test_a_broken_table_is_refused_with_the_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_csv(write(tmp_path, content))


def test_columns_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    path = write(tmp_path, "id,a,a,,\n1,2,3,4,5\n")
    assert read_csv(path).columns == pl.read_csv(path).columns and read_csv(path).rows() == [tuple("12345")]


def test_blank_lines_at_the_end_of_the_test_set_are_no_rows(tmp_path: Path) -> None:
    class Plain(Competition):
        tables: ClassVar = {"test": Table("id", ("text",))}

    write(tmp_path, "id,text\r\n1,a\r\n2,b\r\n,\r\n\r\n")
    assert Plain(CompetitionSettings("plain"), tmp_path).table("test").rows() == [("1", "a"), ("2", "b")]
