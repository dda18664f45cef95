"""Why is a validated row wrong? Its texts, its out-of-fold answer beside the right one, its metric, its prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.config import load_config
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.rankings import is_values, read_oof
from kaggle_llm.competition.span_forms import CharacterSpans
from kaggle_llm.competition.spans import parse_item
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.recorded import has_changed
from kaggle_llm.inference.model import Model, read_models
from kaggle_llm.inference.run import Run, import_predict, score_rows
from kaggle_llm.weights.recorder import Call, RecordingEngine

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

WORST_ROWS = 10
ITEMS_SHOWN = 10  # of an answer; right items below them are shown too
TEXT_SHOWN = 90  # characters of an item in a table


@dataclass(frozen=True)
class JudgedRow:
    """A validated row with its answer and the truth, frames of one row each."""

    id: str
    fold: int
    score: float | None
    """The metric of this row alone; None where it is a function of many rows, such as an AUC."""
    texts: dict[str, str]
    answer: pl.DataFrame
    truth: pl.DataFrame


class JudgedRun:
    """The out-of-fold answers of a complete run. Raises FileNotFoundError where they are not here."""

    def __init__(self, run: str) -> None:
        self.run, self.record, self.oof = run, records.read_complete(run), read_oof(run)
        settings = CompetitionSettings(**self.record.settings["config"]["competition"])
        self.competition: Competition = load_competition(settings)
        self.train = self.competition.table(TRAIN)
        self.truth = self.competition.truth(self.train)

    def row(self, row: str) -> JudgedRow:
        """Raises ValueError for a row that was not validated."""
        import polars as pl

        answer = self.oof.filter(pl.col("id") == row)
        if not answer.height:
            some = self.oof["id"].head(3).to_list()
            raise ValueError(f"{self.run} did not validate {row!r}: name one of the {self.oof.height} rows as {some}")
        texts = self.competition.unlabelled(self.train.filter(pl.col("id") == row)).drop("id").row(0, named=True)
        scores, truth = self.score_rows(answer), self.truth.filter(pl.col("id") == row)
        return JudgedRow(row, answer["fold"][0], None if scores is None else float(scores[0]), texts, answer, truth)

    def score_rows(self, answers: pl.DataFrame) -> np.ndarray | None:
        """[rows] the metric of each row alone; None where it is a function of all rows.

        NaN where a row has nothing to count: no span, neither answered nor right.
        """
        import numpy as np

        metric = self.competition.metric
        if metric.counts is not None and metric.combine is not None:
            counts = metric.counts(answers, self.truth)
            return np.where(counts.any(axis=1), metric.combine(counts), np.nan)
        return None if metric.rows is None else metric.rows(answers, self.truth)

    def worst(self, count: int) -> list[JudgedRow]:
        """The rows with the worst metric, worst first; raises ValueError where a row alone has none."""
        scores, metric = self.score_rows(self.oof), self.competition.metric
        if scores is None:
            raise ValueError(f"{metric.name} is a function of all rows: name a ROW, such as {self.oof['id'][0]}")
        order = (metric.sign * scores).argsort(kind="stable")[:count]
        return [self.row(self.oof["id"][int(number)]) for number in order]

    def describe_items(self, row: JudgedRow) -> dict[str, str]:
        """Item → its text: of a document, or what a span holds; {} where items are labels or texts themselves."""
        if isinstance(self.competition, CharacterSpans):
            items = [*row.answer["items"][0].to_list(), *row.truth["items"][0].to_list()]
            text = next(iter(row.texts.values()))
            return {item: text[span.start : span.end] for item in items if (span := parse_item(item))}
        name = self.competition.documents
        if not name:
            return {}
        documents, columns = self.competition.table(name), self.competition.tables[name].texts
        return {row["id"]: " | ".join(row[column] for column in columns) for row in documents.iter_rows(named=True)}


def rank_right(row: JudgedRow) -> int | None:
    """The rank of the first right item, from 1; None where the answer lacks it, or is numbers."""
    if is_values(row.answer):
        return None
    right = set(row.truth["items"][0].to_list())
    return next((rank for rank, item in enumerate(row.answer["items"][0].to_list(), 1) if item in right), None)


def print_worst(judged: JudgedRun) -> None:
    """A line for each of the worst rows, and how to look at one."""
    rows = [
        [
            *(row.id, str(row.fold), f"{row.score:.4f}", str(rank_right(row) or "–"), row.answer["prediction"][0][:40]),
            shorten(" | ".join(map(str, row.texts.values())), 60),
        ]
        for row in judged.worst(WORST_ROWS)
    ]
    columns = ("row", "fold", judged.competition.metric.name, "right at", "prediction", "texts")
    print_table(f"{judged.run}: the worst of {judged.oof.height} validated rows", columns, rows)
    print(f"kaggle-llm why {judged.run} ROW [--prompts]")


def print_row(judged: JudgedRun, row: JudgedRow) -> None:
    """The row's texts, then its answer beside the truth."""
    score = "" if row.score is None else f", {judged.competition.metric.name} {row.score:.4f}"
    print(f"{row.id} of {judged.run}: fold {row.fold}{score}\n")
    for name, text in row.texts.items():
        print(f"{name}: {text}")
    print(f"prediction: {row.answer['prediction'][0]}\n")
    if is_values(row.answer):
        print_table("", ("target", "predicted", "right"), list_values(judged.competition, row))
    else:
        print_table("", ("", "item", "score", ""), list_items(row, judged.describe_items(row)))


def list_values(competition: Competition, row: JudgedRow) -> list[list[str]]:
    """Target, predicted and right number."""
    names = competition.cell_columns() or [competition.target]
    pairs = zip(names, row.answer["values"][0], row.truth["values"][0], strict=True)
    return [[name, f"{value:.4f}", f"{right:.4f}"] for name, value, right in pairs]


def list_items(row: JudgedRow, texts: dict[str, str]) -> list[list[str]]:
    """Rank, item, score and text of the first items and of the right ones; those that are missing have no rank."""
    right = row.truth["items"][0].to_list()
    answered = list(zip(row.answer["items"][0].to_list(), row.answer["scores"][0].to_list(), strict=True))
    lines = [
        [f"{rank}{' right' if item in right else ''}", shorten(item), f"{score:.4f}", shorten(texts.get(item, ""))]
        for rank, (item, score) in enumerate(answered, 1)
        if rank <= ITEMS_SHOWN or item in right
    ]
    missing = [item for item in right if item not in dict(answered)]
    return lines + [["– right", shorten(item), "–", shorten(texts.get(item, ""))] for item in missing]


def shorten(text: str, length: int = TEXT_SHOWN) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


# the prompts ------------------------------------------------------------------------------------------------


class AskingRun(Run):
    """A Run that notes what every model is asked. Answers of the run in training are looked up, not computed again."""

    def __init__(self, config: Any, competition: Competition, models: Sequence[Model], run: str) -> None:
        super().__init__(config, competition, models, keep_for=run)
        self.calls: dict[str, list[Call]] = {}

    def open_engine(self, model: Model) -> Engine:
        return RecordingEngine(super().open_engine(model), self.calls.setdefault(model.name, []))


def list_prompts(judged: JudgedRun, row: JudgedRow) -> Iterator[tuple[str, list[str]]]:
    """Model → the texts of its prompts of the row, as predict.py sends them today.

    Raises ValueError for an ensemble of runs, whose members have prompts of their own.
    """
    import polars as pl

    models = read_models(judged.record.settings["fold_models"][str(row.fold)])
    if members := judged.record.settings["config"].get("members"):
        raise ValueError(f"{judged.run} asks nothing itself: kaggle-llm why {members[0]} {row.id} --prompts")
    exp = paths.experiment_folder(judged.run)
    config = load_config(paths.run_folder(judged.run) / "config.yaml", import_predict(exp).Config)
    rows = judged.competition.unlabelled(judged.train.filter(pl.col("id") == row.id))
    with AskingRun(config, judged.competition, models, judged.run) as asking:
        score_rows(exp, asking, rows)
        for name, calls in asking.calls.items():
            tokenizer = load_tokenizer(asking.model(name))
            yield name, [tokenizer.decode(prompt) for call in calls for prompt in call.prompts]


def print_prompts(judged: JudgedRun, row: JudgedRow) -> None:
    """The first prompt of every model, and how many there are."""
    if has_changed(judged.run):
        print("\nThe prediction code has changed since the run: the prompts are today's.")
    for name, prompts in list_prompts(judged, row):
        print(f"\n{name} was sent {len(prompts)} prompt(s), the first:")
        print("\n".join(f"  │ {line}" for line in prompts[0].split("\n")) if prompts else "")


def explain_row(run: str, row: str | None, prompts: bool) -> None:
    """Print what is known of a validated row; without one the worst rows."""
    judged = JudgedRun(run)
    if row is None:
        print_worst(judged)
        return
    print_row(judged, judged.row(row))
    if prompts:
        print_prompts(judged, judged.row(row))
