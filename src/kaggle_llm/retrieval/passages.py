"""Cuts long documents into overlapping passages, and answers multiple-choice questions with retrieved passages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.words import BLANKLESS
from kaggle_llm.competition.metrics import recall
from kaggle_llm.competition.rankings import (
    average_rankings,
    make_ranking,
    most_uncertain_first,
    replace_rows,
    select_rows,
    top,
)
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.prompts import ItemPrompts, fill_template
from kaggle_llm.inference.budget import Budget
from kaggle_llm.retrieval.rerank import rerank

if TYPE_CHECKING:
    import polars as pl

# At most 40 characters, and a character of a script without spaces: a text without spaces is cut too.
WORD = re.compile(rf"[{BLANKLESS}]|[^\s{BLANKLESS}]{{1,40}}")


@dataclass
class PassageSettings:
    words: int = 60
    """Words of a passage; a character of a script without spaces (Chinese, Japanese, Thai) counts as one."""
    overlap: int = 20
    """Words that a passage shares with the next; the last passage may share more."""
    template: str = "{title}: {text}"
    """Text of a passage for search and prompt: {text} is the passage, {column} another column of its document."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.words:
            raise ValueError(f"overlap = {self.overlap}, words = {self.words}: 0 ≤ overlap < words is needed")


@dataclass
class ContextSettings:
    depths: list[int] = field(default_factory=lambda: [1, 3])
    """Numbers of passages in the prompt: a question is asked with each in turn, and the scores are averaged."""
    taught: int = 1
    """Number of passages in training prompts."""

    def __post_init__(self) -> None:
        if not self.depths or min(*self.depths, self.taught) < 0:
            raise ValueError(f"depths = {self.depths}, taught = {self.taught}: name one or more, each 0 or more")


def cut_text(text: str, words: int, overlap: int) -> list[str]:
    """Passages of `words` words from left to right; the last one starts earlier so that it is as long as the others. A
    text without words gives one empty passage."""
    spans = [match.span() for match in WORD.finditer(text)]
    last = max(len(spans) - words, 0)
    starts = (min(start, last) for start in range(0, max(len(spans) - overlap, 1), words - overlap))
    passages = [spans[start : start + words] for start in starts]
    return [text[passage[0][0] : passage[-1][1]] if passage else "" for passage in passages]


def cut_documents(documents: pl.DataFrame, settings: PassageSettings) -> pl.DataFrame:
    """The passages of documents (id, text and more): columns id, document (its id), text (the filled template)."""
    import polars as pl

    rows = [
        (f"{document['id']}:{number}", document["id"], fill_template(settings.template, {**document, "text": text}))
        for document in documents.iter_rows(named=True)
        for number, text in enumerate(cut_text(document["text"], settings.words, settings.overlap))
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("id", "document", "text"), pl.String()), orient="row")


def report_recall(
    retrieved: pl.DataFrame, passages: pl.DataFrame, right: pl.DataFrame, depths: Sequence[int]
) -> dict[str, float]:
    """Name → share of rows whose right document is among those of the first passages, for each depth; also printed.

    retrieved: RANKING of passages; right: id and document of every row.
    """
    import polars as pl

    documents = dict(passages.select("id", "document").iter_rows())
    truth = right.select("id", pl.concat_list("document").alias("items"))
    scores = {}
    for depth in depths:
        items = [list(dict.fromkeys(documents[item] for item in row)) for row in top(retrieved, depth)["items"]]
        ranking = make_ranking(retrieved["id"].to_list(), items, [range(0, -len(row), -1) for row in items])
        scores[f"document in the first {depth}"] = recall(max(depth, 1)).score(ranking, truth)
    print("; ".join(f"{name}: {score:.4f}" for name, score in scores.items()), flush=True)
    return scores


def rank_alike(rows: pl.DataFrame, options: Sequence[str]) -> pl.DataFrame:
    """RANKING of all options in the given order, the same for every row: the fallback for rows without an answer."""
    scores = [-float(rank) for rank in range(len(options))]
    return make_ranking(rows["id"].to_list(), [options] * rows.height, [scores] * rows.height)


def add_context(rows: pl.DataFrame, retrieved: pl.DataFrame, passages: pl.DataFrame, depth: int) -> pl.DataFrame:
    """The rows with a column `context`: their first `depth` passages, a line each. retrieved: RANKING of passages."""
    import polars as pl

    texts = dict(passages.select("id", "text").iter_rows())
    contexts = ["\n".join(texts[item] for item in items) for items in top(retrieved, depth)["items"]]
    return rows.with_columns(context=pl.Series(contexts, dtype=pl.String()))


def answer_in_turn(
    forms: Sequence[pl.DataFrame],
    options: Sequence[str],
    prompts: ItemPrompts,
    engine: Engine,
    budget: Budget,
    offer: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """RANKING of the options of every row by log-odds, averaged over several forms (prompts) of the same rows.

    All rows are asked in the first form, then in the others, the most uncertain rows first. Rows that the budget cut
    keep the answer of earlier forms, or the given order of the options.
    """
    rows = forms[0]
    fallback = rank_alike(rows, options)
    answers, complete = fallback, list[Any]()

    def join(scored: pl.DataFrame) -> pl.DataFrame:
        earlier = [select_rows(ranking, scored["id"].to_list()) for ranking in complete]
        return replace_rows(answers, average_rankings([*earlier, scored]))

    def report(scored: pl.DataFrame) -> None:
        offer(join(scored))

    for form in forms:
        order = most_uncertain_first(answers) if complete else rows["id"].to_list()
        asked, candidates = select_rows(form, order), select_rows(fallback, order)
        scored = rerank(asked, candidates, len(options), prompts, engine, budget, report)
        answers = join(scored)
        offer(answers)
        if scored.height < rows.height:
            break
        complete.append(scored)
    return answers
