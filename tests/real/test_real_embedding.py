"""The real MiniLM on real papers: both encoders rank held-out documents better after training than before."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
from misconceptions import ROOT
from sources import find_source

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.metrics import mean_average_precision, recall
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Group, encode_pairs
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.dense import DenseIndex
from kaggle_llm.retrieval.negatives import NegativeSettings, draw_groups
from kaggle_llm.tasks.cross_encoder import CrossEncoderSettings
from kaggle_llm.tasks.cross_encoder_training import label_pairs, train_cross_encoder
from kaggle_llm.tasks.embedding import EmbeddingSettings, train_embedder
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job

SOURCE = find_source("scitldr")
BASE = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
MAP = mean_average_precision(20)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not BASE.is_dir(), reason="the real encoder is absent: make models"),
]


def read_papers(part: str, count: int, text: str) -> tuple[dict[str, str], dict[str, str], pl.DataFrame]:
    """Titles, and the abstracts' last sentences or the summaries, by id; which belongs to which."""
    lines = (SOURCE / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    papers = [json.loads(line) for line in lines]
    titles = {f"q{place}": paper["title"] for place, paper in enumerate(papers)}
    texts = {f"d{place}": paper[text][-1].strip() for place, paper in enumerate(papers)}
    return titles, texts, pl.DataFrame({"id": list(titles), "items": [[item] for item in texts]})


def search(folder: Path, queries: dict[str, str], documents: dict[str, str]) -> pl.DataFrame:
    config: Any = SimpleNamespace(engine=EngineSettings())
    with Run(config, cast(Competition, None), [Model("encoder", folder)]) as run:
        index = DenseIndex(run, "encoder", list(documents), list(documents.values()), 48)
        return index.search(list(queries), list(queries.values()), 20)


def test_titles_find_their_abstracts_last_sentence_more_often_after_training(tmp_path: Path) -> None:
    queries, documents, truth = read_papers("test", 400, "source")
    before = search(BASE, queries, documents)
    training = TrainingSettings(batch=64, batch_tokens=4096, learning_rate=1e-3)
    settings = EmbeddingSettings(max_tokens=48, negatives=NegativeSettings(last=20, per_query=1))
    job = Job(BASE, tmp_path / "run", LoraSettings(), training, seed=0)
    train_embedder(settings, *read_papers("train", 480, "source"), job)
    after = search(tmp_path / "run", queries, documents)
    print(
        f"MAP@20 of {truth.height} titles: {MAP.score(before, truth):.4f} before, {MAP.score(after, truth):.4f} after"
    )
    assert MAP.score(after, truth) > MAP.score(before, truth) + 0.02
    assert recall(1).score(after, truth) > recall(1).score(before, truth)


def shuffled_groups(documents: dict[str, str], truth: pl.DataFrame, size: int) -> list[Group]:
    """A title's own summary among others, drawn from all."""
    rng = random.Random(0)
    drawn = [rng.sample(list(documents), 20) for _ in range(truth.height)]
    candidates = make_ranking(truth["id"].to_list(), drawn, [[-float(place) for place in range(20)] for _ in drawn])
    return draw_groups(candidates, truth, size, 20, seed=0)


def rank_groups(groups: list[Group], scores: list[list[float]]) -> pl.DataFrame:
    return make_ranking([group.id for group in groups], [group.items for group in groups], scores)


def test_a_cross_encoder_learns_from_a_new_head_which_summary_belongs_to_a_title(tmp_path: Path) -> None:
    queries, documents, truth = read_papers("test", 100, "target")
    groups = shuffled_groups(documents, truth, 8)
    before = rank_groups(groups, [[-float(place) for place in range(8)] for _ in groups])  # a head without opinion
    training = TrainingSettings(batch=8, learning_rate=3e-4)
    job = Job(BASE, tmp_path / "run", LoraSettings(method="full"), training, seed=0)
    titles, summaries, known = read_papers("train", 240, "target")
    pairs = label_pairs(shuffled_groups(summaries, known, 4), titles, summaries)
    train_cross_encoder(CrossEncoderSettings(loss="listwise", max_tokens=96), pairs, job)
    asked = label_pairs(groups, queries, documents)
    tokenizer = load_tokenizer(tmp_path / "run")
    prompts = encode_pairs(tokenizer, [pair.query for pair in asked], [pair.document for pair in asked], 96)
    logits = [float(row[0]) for row in make_engine(tmp_path / "run", EngineSettings()).logits(prompts)]
    after = rank_groups(groups, [logits[start : start + 8] for start in range(0, len(logits), 8)])
    print(f"MAP of 8 summaries a title: {MAP.score(before, truth):.4f} before, {MAP.score(after, truth):.4f} after")
    assert MAP.score(before, truth) < 0.5
    assert MAP.score(after, truth) > 0.75
