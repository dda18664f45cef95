"""SciTLDR's papers as an open-book exam that exp006 reads: python tests/real/paper_exam.py → input/paper-exam/.

Source: one-sentence summaries of papers (Apache-2.0), read in place (sources.py). An article is a paper's title
and abstract. A question quotes the sentence of the abstract that shares fewest words with the paper's summary; the
options are that summary and those of the papers whose summaries are nearest to it by BM25. So the sentence alone says
little, and what stands around it in the book says more. Its train becomes train.csv, its dev the hidden test, in
output/hidden/ of the competition whose reader is used.
"""

from __future__ import annotations

import json
import random
import shlex
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

from kaggle_llm.competition.demo_open_book import LETTERS
from kaggle_llm.retrieval.lexical import LexicalIndex
from kaggle_llm_demo.files import write_competition
from kaggle_llm_demo.open_book import NAME

SOURCE = find_source("scitldr")
SHORTEST = 8  # words of a sentence that is quoted
# What exp006 has to be told, and nothing else: whole sentences instead of names and numbers.
WORDS = (
    "competition.dir=input/paper-exam",
    "retrieval.query='{question}'",
    "prompt.budgets.question=64",
    "prompt.budgets.text=40",
)


@dataclass(frozen=True)
class Paper:
    id: str
    title: str
    abstract: str
    quote: str
    summary: str


def read_papers(path: Path, prefix: str, count: int | None = None) -> list[Paper]:
    """The first `count` papers with a sentence that can be quoted; no two with the same summary."""
    found: dict[str, Paper] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        paper = json.loads(line)
        summary, quotes = paper["target"][0], [text for text in paper["source"] if len(text.split()) >= SHORTEST]
        if quotes and paper["title"] and summary not in found:
            quote = min(quotes, key=lambda text, summary=summary: share_words(text, summary))
            found[summary] = Paper(f"{prefix}{number:04d}", paper["title"], " ".join(paper["source"]), quote, summary)
    return list(found.values())[:count]


def share_words(text: str, summary: str) -> float:
    """The share of the summary's words that the text has."""
    words = set(summary.lower().split())
    return len(words.intersection(text.lower().split())) / len(words)


def make_rows(papers: list[Paper], rng: random.Random) -> pl.DataFrame:
    """A question of each paper; its options are summaries of these papers."""
    summaries = {paper.id: paper.summary for paper in papers}
    index = LexicalIndex(list(summaries), list(summaries.values()))
    near = index.search(list(summaries), list(summaries.values()), 2 * len(LETTERS))["items"].to_list()
    rows = []
    for paper, items in zip(papers, near, strict=True):
        wrong = [item for item in items if item != paper.id][: len(LETTERS) - 1]
        options = rng.sample([paper.id, *wrong], len(LETTERS))
        question = f'Which is the summary of the paper that says: "{paper.quote}"'
        letter = LETTERS[options.index(paper.id)]
        rows.append((paper.id, question, *(summaries[option] for option in options), letter, paper.id))
    return pl.DataFrame(rows, schema=["id", "question", *LETTERS, "answer", "article"], orient="row")


def convert(source: Path, target: Path, hidden: Path, train: int | None = None, test: int | None = None) -> None:
    """The competition's files in `target`, the hidden test in `hidden`; of each part its first papers, None: all."""
    rng = random.Random(0)
    taught, asked = (
        read_papers(source / f"{name}.jsonl", name, count) for name, count in (("train", train), ("dev", test))
    )
    articles = [(paper.id, paper.title, paper.abstract) for paper in (*taught, *asked)]
    rows = make_rows(asked, rng)
    write_competition(
        target,
        hidden,
        make_rows(taught, rng),
        rows.head(3),
        rows,
        {"answer": " ".join(LETTERS[:3])},
        hide=("article",),
        articles=pl.DataFrame(articles, schema=["article_id", "title", "text"], orient="row"),
    )


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "paper-exam", ROOT / "output" / "hidden" / NAME, train=1000, test=200)
    print("input/paper-exam is ready:\npython exp/exp006_open_book/train.py run=papers", shlex.join(WORDS))
