"""220 real classroom errors, laid out as Kaggle would: python tests/real/misconceptions.py → input/mae/.

Source: math-misconceptions (MIT licence, Nancy Otero), read in place (sources.py). The Explanation column is
left out: it gives the answer away.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

SOURCE = find_source("math_misconceptions")
NOT_GIVEN = "not given"  # where the source leaves an answer empty


def convert(source: Path, target: Path) -> None:
    """train.csv, misconceptions.csv, test.csv (3 rows of train under other ids) and sample_submission.csv."""
    examples = json.loads((source / "data.json").read_text(encoding="utf-8"))
    train = pl.DataFrame(
        {
            "id": [f"tr{n:05d}" for n in range(len(examples))],
            "question": [text(example["Question"]) for example in examples],
            "correct_answer": [text(example["Correct Answer"]) for example in examples],
            "wrong_answer": [text(example["Incorrect Answer"]) for example in examples],
            "misconception_id": [example["Misconception ID"] for example in examples],
        }
    )
    documents = {example["Misconception ID"]: text(example["Misconception"]) for example in examples}
    test = train.head(3).with_columns(pl.col("id").str.replace("tr", "te"))
    target.mkdir(parents=True, exist_ok=True)
    train.write_csv(target / "train.csv")
    pl.DataFrame({"misconception_id": list(documents), "text": list(documents.values())}).write_csv(
        target / "misconceptions.csv"
    )
    test.drop("misconception_id").write_csv(target / "test.csv")
    guess = " ".join(list(documents)[:25])
    test.select("id", pl.lit(guess).alias("misconception_id")).write_csv(target / "sample_submission.csv")


def text(value: object) -> str:
    return str(value or "").strip() or NOT_GIVEN


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "mae")
    print("input/mae is ready:\npython exp/exp001_retrieve/train.py competition.dir=input/mae run=mae")
