"""SciTLDR laid out as exp003 reads it: python tests/real/abstracts.py → input/abstracts/.

Source: abstracts of papers with one-sentence summaries (Apache-2.0), read in place (sources.py); several
summaries of a paper are a line each. A paper is its own group. Its train and dev become train.csv, its test the hidden
test.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

from kaggle_llm_demo.dialogues import NAME
from kaggle_llm_demo.files import write_competition

SOURCE = find_source("scitldr")
# What exp003 has to be told, and nothing else.
WORDS = ("competition.dir=input/abstracts", "prompt.budgets.dialogue=256")


def read_papers(path: Path, prefix: str, count: int | None = None) -> pl.DataFrame:
    """The first `count` papers."""
    papers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    ids = [f"{prefix}{number:04d}" for number in range(len(papers))]
    texts = [" ".join(paper["source"]) for paper in papers]
    summaries = ["\n".join(" ".join(one.split()) for one in paper["target"]) for paper in papers]
    return pl.DataFrame({"id": ids, "dialogue": texts, "summary": summaries, "thread": ids})


def convert(source: Path, target: Path, hidden: Path, train: int | None = None, dev: int | None = None) -> None:
    """The competition's files in `target`, the hidden test in `hidden`; of train and dev the first papers."""
    taught = pl.concat([read_papers(source / "train.jsonl", "tr", train), read_papers(source / "dev.jsonl", "dv", dev)])
    asked = read_papers(source / "test.jsonl", "te", 40)
    write_competition(target, hidden, taught, asked.head(3), asked, {"summary": "A new method."}, hide=("thread",))


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "abstracts", ROOT / "output" / "hidden" / NAME, 400, 100)
    print("input/abstracts is ready:\npython exp/exp003_summarize/train.py run=scitldr", shlex.join(WORDS))
