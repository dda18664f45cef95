"""SciTLDR's sentences laid out as exp008 and exp009 read essays: python tests/real/sentences.py → input/sentences/.

Source: abstracts of papers with one-sentence summaries (Apache-2.0), read in place (sources.py). The question is a
paper's title, the answer one sentence of its abstract, the mark the sixth of the abstract in which it stands. Or, as
numbers: its place, from 0 to 1, and the share of the summary's words that it has. Sentences of a paper stay together.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

from kaggle_llm_demo.essays import HIGHEST, NAME
from kaggle_llm_demo.files import number_rows, write_competition

SOURCE = find_source("scitldr")
# What both have to be told, and nothing else.
WORDS = ("competition.dir=input/sentences", "folds.count=2", "folds.validate=[0]")
NUMBERS = ("place", "worth")


def read_sentences(path: Path, prefix: str, papers: int) -> pl.DataFrame:
    """id, question, answer, score, place and worth, of the first papers that have a title, each title once."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    titled = {" ".join(paper["title"].split()): paper for paper in found if paper["title"]}
    rows = []
    for title, paper in list(titled.items())[:papers]:
        abstract, summary = paper["source"], set(paper["target"][0].lower().split())
        for number, text in enumerate(abstract):
            place, worth = number / len(abstract), len(summary & set(text.lower().split())) / len(summary)
            if text.strip():
                rows.append((title, text, str(1 + int(HIGHEST * place)), f"{place:.4f}", f"{worth:.4f}"))
    frame = pl.DataFrame(rows, schema=["question", "answer", "score", *NUMBERS], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, 1, frame.height)), *frame.columns)


def convert(source: Path, target: Path, hidden: Path, papers: int, targets: tuple[str, ...] = ("score",)) -> None:
    """The competition's files in `target`, the hidden test in `hidden`; targets: score, or both numbers."""
    columns = ["id", "question", "answer", *targets]
    taught = read_sentences(source / "train.jsonl", "tr", papers).select(columns)
    asked = read_sentences(source / "test.jsonl", "te", 9).select(columns)
    write_competition(target, hidden, taught, asked.head(3), asked, dict.fromkeys(targets, "3"))


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "sentences", ROOT / "output" / "hidden" / NAME, 60)
    for name in ("exp008_heads", "exp009_linear"):
        print(f"python exp/{name}/train.py run=scitldr", shlex.join(WORDS))
