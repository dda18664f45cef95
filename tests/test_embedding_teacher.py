"""A reranker's scores beside the contrastive loss: the literal formula, and what is learned of them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_embedding import CORPUS, DOCUMENTS, IN_BATCH, PAIRS, QUERIES, RIGHT, TRUTH, embed, make_job
from workspace import Workspace, succeed

from kaggle_llm.tasks.distillation import DistillationSettings
from kaggle_llm.tasks.embedding import (
    Batch,
    EmbeddingSettings,
    HardNegatives,
    encode_batch,
    load_embedder,
    make_loss,
    train_embedder,
)
from kaggle_llm.tasks.embedding_teacher import Taught, label_batch, read_taught

SETTINGS = EmbeddingSettings(max_tokens=32, temperature=0.1, negatives=IN_BATCH)
SCORES = {f"q{i}": {f"d{i}": 1.0, f"d{(i + 1) % 12}": 0.4, f"d{(i + 2) % 12}": -2.0} for i in range(12)}


def literal_loss(folder: Path, batch: list[int], taught: Taught) -> float:
    """(1 − w) · mean −log softmax(s)[own] + w · T² · mean KL(softmax(t/T) ‖ softmax(s/T)) over what was scored."""
    queries, items = [f"q{i}" for i in batch], [f"d{i}" for i in batch]
    texts = [QUERIES[query] for query in queries], [DOCUMENTS[item] for item in items]
    logits = embed(folder, texts[0]).astype(float) @ embed(folder, texts[1]).astype(float).T / SETTINGS.temperature
    hard = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits.diagonal())
    weight, temperature, soft = taught.settings.weight, taught.settings.temperature, []
    for row, query in zip(logits, queries, strict=True):
        known = [place for place, item in enumerate(items) if item in taught.scores.get(query, {})]
        aim = np.exp([taught.scores[query][items[place]] / temperature for place in known])
        said = np.exp(row[known] / temperature)
        aim, said = aim / aim.sum(), said / said.sum()
        soft.append(temperature**2 * float((aim * np.log(aim / said)).sum()) if len(known) > 1 else 0.0)
    return float((1 - weight) * hard + weight * np.mean(soft))


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (1.0, 2.0), (0.3, 0.5)])
def test_the_loss_is_the_formula_by_the_engines_vectors(
    pico_encoder: Path, tmp_path: Path, weight: float, temperature: float
) -> None:
    """Of 0, 2 and 3 documents that the teacher scored; in parts of one text and at once."""
    import torch

    taught = Taught({**SCORES, "q7": {"d7": 3.0}}, DistillationSettings("t", weight, temperature))
    model = load_embedder(SETTINGS, make_job(pico_encoder, tmp_path, method="full"), "cpu").eval()
    model.save_pretrained(str(tmp_path / "untrained"), create_model_card=False)
    batch, nothing = [3, 4, 5, 7, 11], HardNegatives(lambda _: [], tmp_path, refresh=False)
    losses, gradients = [], []
    for batch_tokens in (32, 1000):
        features, labels = encode_batch(model, Batch(0, batch), PAIRS, CORPUS, nothing, 32, taught)
        model.zero_grad()
        loss = make_loss(model, SETTINGS, batch_tokens, taught)(features, labels)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
    assert losses == pytest.approx([literal_loss(tmp_path / "untrained", batch, taught)] * 2, abs=1e-5)
    assert gradients[0].abs().max() > 0 and torch.allclose(*gradients, atol=1e-5)


def test_a_text_has_the_score_of_its_document_and_unscored_ones_have_none() -> None:
    taught = Taught({"q0": {"d1": 0.5, "unknown": 9.0}})
    labels = label_batch(["q0", "q1"], [DOCUMENTS["d0"], DOCUMENTS["d1"]], DOCUMENTS, taught)
    assert labels.tolist() == [[-math.inf, 0.5], [-math.inf, -math.inf]]


def test_an_embedder_learns_the_order_of_its_teacher(pico_encoder: Path, tmp_path: Path) -> None:
    """With w = 1 the labels say nothing: the second document of each query is taught to be the nearest one."""
    wanted = {query: {right: 0.0, f"d{(place + 5) % 12}": 3.0} for place, (query, (right,)) in enumerate(RIGHT.items())}
    taught = Taught(wanted, DistillationSettings("t", weight=1.0))
    job = make_job(pico_encoder, tmp_path / "run", method="full", epochs=40, batch=12, learning_rate=3e-3)
    train_embedder(SETTINGS, QUERIES, DOCUMENTS, TRUTH, job, taught)
    nearer = []
    for query, scores in wanted.items():
        vectors = embed(job.folder, [QUERIES[query], *(DOCUMENTS[item] for item in scores)])
        right, best = vectors[1:] @ vectors[0]
        nearer.append(best > right)
    assert np.mean(nearer) > 0.8


def test_a_teacher_that_scored_none_of_the_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored: Any = {"id": ["a", "b"], "items": [["x"], ["y"]], "scores": [[0.1], [0.2]], "fold": [0, 1]}
    pl.DataFrame(scored).write_parquet(tmp_path / "oof.parquet")
    settings = DistillationSettings(str(tmp_path / "oof.parquet"))
    assert read_taught(settings, ["b", "c"]).scores == {"b": {"y": 0.2}}
    assert "teaches 1 of 2 rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no scores of 1 rows, first \['c'\]"):
        read_taught(settings, ["c"])
    assert read_taught(DistillationSettings(), ["c"]).scores == {}
    with pytest.raises(ValueError, match="soft loss only"):
        Taught({"a": {"x": 1.0}}, DistillationSettings("t", cosine=0.1))


@pytest.mark.slow
def test_an_experiment_learns_from_a_runs_out_of_fold_scores(trained: Workspace) -> None:
    """exp002's smoke run validated four rows of fold 0; they are training rows of fold 1."""
    words = ("--smoke", "folds.validate=[1]", "run=taught", "training.tokens=4000")
    said = succeed(trained.train("exp010_embed", *words, "distillation.teacher=exp002_rerank--smoke"))
    assert re.search(r"exp002_rerank--smoke teaches 4 of \d\d rows", said)
    again = succeed(trained.train("exp010_embed", *words, "distillation.teacher=exp002_rerank--smoke"))
    assert "fold1/encoder is complete, reused" in again
    other = succeed(trained.train("exp010_embed", *words))
    assert "fold1/encoder is made again" in other and "teaches" not in other
