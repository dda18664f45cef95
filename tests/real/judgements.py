"""PandaLM's pairs laid out as exp004 reads them: python tests/real/judgements.py → input/judgements/.

Source: 999 pairs of answers with three people's votes each (Apache-2.0), read in place (sources.py). A problem
is an instruction with its input; the shares of the labels are those of the votes. Pairs of one problem stay together.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

from kaggle_llm_demo.files import number_rows, write_competition
from kaggle_llm_demo.judge import COLUMNS, NAME

SOURCE = find_source("pandalm") / "testset-v1.json"
VOTES = (1, 2, 0)  # for the first answer, for the second, for neither
# What exp004 has to be told, and nothing else.
WORDS = ("competition.dir=input/judgements", "training.learning_rate=2.0e-4")


def read_pairs(path: Path, count: int | None = None) -> pl.DataFrame:
    """The first `count` pairs, both of whose answers say something."""
    rows = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        texts = [f"{row['instruction']} {row['input']}".strip(), str(row["response1"]), str(row["response2"])]
        votes = Counter(row[f"annotator{n}"] for n in (1, 2, 3))
        if all(text.strip() for text in texts):
            rows.append((*texts, *(round(votes[vote] / 3, 4) for vote in VOTES)))
    names = ["problem", "answer_a", "answer_b", *COLUMNS]
    frame = pl.DataFrame(rows[:count], schema=names, orient="row")
    return frame.select(pl.Series("id", number_rows("p", 1, frame.height)), *names)


def convert(source: Path, target: Path, hidden: Path, count: int | None = None) -> None:
    """The competition's files in `target`; the hidden test is the last twentieth of the pairs."""
    pairs = read_pairs(source, count)
    held = pairs.tail(max(pairs.height // 20, 3))
    train = pairs.head(pairs.height - held.height)
    write_competition(target, hidden, train, held.head(3), held, dict.fromkeys(COLUMNS, "0.3333"))


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "judgements", ROOT / "output" / "hidden" / NAME)
    print("input/judgements is ready:\npython exp/exp004_judge/train.py run=pandalm", shlex.join(WORDS))
