"""Long documents as passages that overlap, and questions with options answered from the passages that they find."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

WORD = re.compile(r"\S{1,40}")  # a text without blanks is words, too


@dataclass
class PassageSettings:
    words: int = 60
    """Words of a passage."""
    overlap: int = 20
    """Words that a passage shares with the next; the last one shares more."""
    template: str = "{title}: {text}"
    """What is searched and shown; {text} is the passage, {column} another text of its document."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.words:
            raise ValueError(f"overlap = {self.overlap}, words = {self.words}: 0 ≤ overlap < words is needed")


@dataclass
class ContextSettings:
    depths: list[int] = field(default_factory=lambda: [1, 3])
    """How many passages a question is asked with: each depth in turn, and the scores are averaged."""
    taught: int = 1
    """The depth of the training's questions."""

    def __post_init__(self) -> None:
        if not self.depths or min(*self.depths, self.taught) < 0:
            raise ValueError(f"depths = {self.depths}, taught = {self.taught}: name one or more, each 0 or more")


def cut_text(text: str, words: int, overlap: int) -> list[str]:
    """Stretches of `words` words from left to right, each as it stands in the text; the last one is moved back, so
    that it is as long as the others. A text without words is one stretch."""
    places = [(found.start(), found.end()) for found in WORD.finditer(text)]
    starts = range(0, max(len(places) - overlap, 1), words - overlap)
    shown = [places[max(min(start, len(places) - words), 0) :][:words] for start in starts]
    return [text[part[0][0] : part[-1][1]] if part else "" for part in shown]


def cut_documents(documents: pl.DataFrame, settings: PassageSettings) -> pl.DataFrame:
    """Documents (id, text and more) → passages: columns id, document (its id) and text (the filled template)."""
    import polars as pl

    rows = [
        (f"{document['id']}:{number}", document["id"], fill_template(settings.template, {**document, "text": part}))
        for document in documents.iter_rows(named=True)
        for number, part in enumerate(cut_text(document["text"], settings.words, settings.overlap))
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("id", "document", "text"), pl.String()), orient="row")


def report_recall(
    found: pl.DataFrame, passages: pl.DataFrame, right: pl.DataFrame, depths: Sequence[int]
) -> dict[str, float]:
    """Name → share of the rows whose right document one of the first passages belongs to, for each depth.

    found: RANKING of passages; right: id and document of every row. Printed, too.
    """
    import polars as pl

    documents = dict(passages.select("id", "document").iter_rows())
    truth = right.select("id", pl.concat_list("document").alias("items"))
    scores = {}
    for depth in depths:
        items = [list(dict.fromkeys(documents[item] for item in row)) for row in top(found, depth)["items"]]
        ranking = make_ranking(found["id"].to_list(), items, [range(0, -len(row), -1) for row in items])
        scores[f"document in the first {depth}"] = recall(max(depth, 1)).score(ranking, truth)
    print("; ".join(f"{name}: {score:.4f}" for name, score in scores.items()), flush=True)
    return scores


def rank_alike(rows: pl.DataFrame, options: Sequence[str]) -> pl.DataFrame:
    """RANKING of all options of every row in the order given: what is said of a row that nobody was asked about."""
    places = [-float(place) for place in range(len(options))]
    return make_ranking(rows["id"].to_list(), [options] * rows.height, [places] * rows.height)


def add_context(rows: pl.DataFrame, found: pl.DataFrame, passages: pl.DataFrame, depth: int) -> pl.DataFrame:
    """The rows with a column `context`: the texts of their first passages, a line each. found: of the same rows."""
    import polars as pl

    texts = dict(passages.select("id", "text").iter_rows())
    contexts = ["\n".join(texts[item] for item in items) for items in top(found, depth)["items"]]
    return rows.with_columns(context=pl.Series(contexts, dtype=pl.String()))


def answer_in_turn(
    forms: Sequence[pl.DataFrame],
    options: Sequence[str],
    prompts: ItemPrompts,
    engine: Engine,
    budget: Budget,
    offer: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """RANKING of the options of every row by log-odds, averaged over several forms of the same rows.

    All rows are asked in the first form, then in each other one, the most uncertain rows first. A row that the budget
    cut keeps what it has, at first the order given.
    """
    rows = forms[0]
    given = rank_alike(rows, options)
    answers, complete = given, list[Any]()

    def join(said: pl.DataFrame) -> pl.DataFrame:
        known = [select_rows(one, said["id"].to_list()) for one in complete]
        return replace_rows(answers, average_rankings([*known, said]))

    def tell(said: pl.DataFrame) -> None:
        offer(join(said))

    for form in forms:
        order = most_uncertain_first(answers) if complete else rows["id"].to_list()
        asked, candidates = select_rows(form, order), select_rows(given, order)
        said = rerank(asked, candidates, len(options), prompts, engine, budget, tell)
        answers = join(said)
        offer(answers)
        if said.height < rows.height:
            break
        complete.append(said)
    return answers
