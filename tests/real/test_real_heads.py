"""Heads and masked LM on real data: the real encoder is better on held-out rows than before training.

Before, a head that starts at random is the prior, the mean or no span; the margins are measured ones with room.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sources import ROOT, find_source

from kaggle_llm.competition import metrics
from kaggle_llm.competition.rankings import make_values
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.texts import encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks import heads as ranks
from kaggle_llm.tasks.heads import HeadSettings, ordinal_target
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask, check_targets
from kaggle_llm.tasks.masked import (
    MaskedExample,
    MaskedSettings,
    MaskedTask,
    make_chunks,
    mask_chunks,
    masked_log_loss,
)
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.merge import merge_adapter

PAPERS, ERRORS = find_source("scitldr"), find_source("math_misconceptions")
ENCODER = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
LORA = LoraSettings(r=16, alpha=32)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (PAPERS.is_dir() and ERRORS.is_dir()), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not ENCODER.is_dir(), reason="the encoder is absent: make models"),
]

THIRDS = ["first third", "middle", "last third"]


def train(task: Any, examples: Sequence[Any], folder: Path, lora: LoraSettings = LORA, **changes: Any) -> Path:
    """The merged model."""
    values = {"learning_rate": 5e-4, "head_learning_rate": 5e-3, "batch": 16, "batch_tokens": 1024} | changes
    job = Job(ENCODER, folder / "trained", lora, TrainingSettings(**values), seed=0)
    fine_tune(task, examples, job)
    merge_adapter(ENCODER, job.folder, folder / "merged")
    return folder / "merged"


def predict(folder: Path, rows: Sequence[Prompt]) -> list[Any]:
    engine = make_engine(folder, EngineSettings())
    found = engine.logits(rows)
    engine.close()
    return found


def encode(texts: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in encode_texts(load_tokenizer(ENCODER), texts, 96)]


def truth_of(ids: Sequence[str], answers: Sequence[object]) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, "items": [[str(answer)] for answer in answers]})


def report(name: str, before: float, after: float) -> None:
    print(f"{name}: {before:.4f} before, {after:.4f} after", flush=True)


def read_abstracts(name: str, papers: int) -> list[str]:
    lines = (PAPERS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:papers]
    return [" ".join(json.loads(line)["source"]) for line in lines]


def read_sentences(name: str, papers: int) -> list[tuple[str, float]]:
    """Sentences of scientific abstracts, and where each stands: from 0, the beginning, to below 1."""
    lines = (PAPERS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:papers]
    abstracts = [json.loads(line)["source"] for line in lines]
    return [(text, place / len(abstract)) for abstract in abstracts for place, text in enumerate(abstract)]


def test_ordinal_the_third_of_its_abstract_where_a_sentence_stands(tmp_path: Path) -> None:
    settings = HeadSettings("ordinal", THIRDS)
    taught, held = read_sentences("train", 120), read_sentences("dev", 60)
    rows = encode([text for text, _ in taught])
    levels, right = ([int(3 * place) for _, place in sentences] for sentences in (taught, held))
    examples = [HeadExample(row, ordinal_target(level, 3)) for row, level in zip(rows, levels, strict=True)]
    check_targets(settings, examples)
    folder = train(HeadTask(settings), examples, tmp_path)
    ids = [f"s{n}" for n in range(len(held))]
    truth, metric = make_values(ids, [[level] for level in right]), metrics.spearman()
    after = ranks.predict_levels(ids, predict(folder, encode([text for text, _ in held])), 3)
    before = ranks.predict_mean(ids, [(level,) for level in levels])
    report("spearman", metric.score(before, truth), metric.score(after, truth))
    assert metric.score(before, truth) == 0
    assert metric.score(after, truth) > 0.2


def test_regression_how_far_into_its_abstract_a_sentence_stands(tmp_path: Path) -> None:
    settings = HeadSettings("regression")
    taught, held = read_sentences("train", 120), read_sentences("dev", 60)
    rows = encode([text for text, _ in taught])
    examples = [HeadExample(row, (place,)) for row, (_, place) in zip(rows, taught, strict=True)]
    check_targets(settings, examples)
    folder = train(HeadTask(settings), examples, tmp_path)
    ids = [f"s{n}" for n in range(len(held))]
    truth, metric = make_values(ids, [[place] for _, place in held]), metrics.root_mean_squared_error()
    after = ranks.predict_values(ids, predict(folder, encode([text for text, _ in held])))
    before = ranks.predict_mean(ids, [(place,) for _, place in taught])
    report("rmse", metric.score(before, truth), metric.score(after, truth))
    assert metric.score(after, truth) < 0.97 * metric.score(before, truth)


def test_classification_the_topic_of_a_wrong_answer(tmp_path: Path) -> None:
    """No misconception is on both sides."""
    examples = json.loads((ERRORS / "data.json").read_text(encoding="utf-8"))
    names = sorted({example["Misconception ID"] for example in examples})
    apart = set(names[::4])
    labels = sorted({example["Topic"] for example in examples})
    texts = [f"{example['Question']} Answer: {example['Incorrect Answer']}" for example in examples]
    side = [example["Misconception ID"] in apart for example in examples]
    rows, settings = encode(texts), HeadSettings("classification", labels)
    targets = [tuple(float(example["Topic"] == label) for label in labels) for example in examples]
    taught = [HeadExample(row, target) for row, target, held in zip(rows, targets, side, strict=True) if not held]
    check_targets(settings, taught)
    folder = train(HeadTask(settings), taught, tmp_path, epochs=6, batch=8)
    ids = [f"m{n}" for n, held in enumerate(side) if held]
    held = [row for row, held in zip(rows, side, strict=True) if held]
    truth = truth_of(ids, [example["Topic"] for example, held in zip(examples, side, strict=True) if held])
    after = ranks.rank_classes(ids, predict(folder, held), labels)
    before = ranks.rank_prior(ids, labels, [example.target for example in taught])
    for metric in (metrics.accuracy(), metrics.log_loss(labels)):
        report(metric.name, metric.score(before, truth), metric.score(after, truth))
    metric = metrics.accuracy()
    assert metric.score(after, truth) > metric.score(before, truth) + 0.15


def unigram_log_loss(chunks: list[Prompt], examples: list[MaskedExample], vocabulary: int) -> float:
    """The loss of a model that knows only each token's frequency in `chunks` (one is added to every count)."""
    counts = Counter(token for chunk in chunks for token in chunk)
    total = sum(counts.values()) + vocabulary
    originals = [token for example in examples for token in example.originals]
    return -math.fsum(math.log((counts[token] + 1) / total) for token in originals) / len(originals)


def test_masked_abstracts_are_read_on(tmp_path: Path) -> None:
    """The encoder has no MLM head: before, it is drawn at random; token frequencies are the rule to beat."""
    tokenizer = load_tokenizer(ENCODER)
    taught, held = (make_chunks(tokenizer, read_abstracts(*part), 128) for part in (("train", 300), ("dev", 40)))
    asked = mask_chunks(tokenizer, held, MaskedSettings(), seed=1)
    examples = mask_chunks(tokenizer, taught, MaskedSettings(), seed=0)
    folder = train(MaskedTask(), examples, tmp_path, LoraSettings(method="full"))
    before, after = masked_log_loss(ENCODER, asked), masked_log_loss(folder, asked)
    unigram = unigram_log_loss(taught, asked, len(tokenizer))
    report("masked log-loss", before, after)
    print(f"unigram {unigram:.4f}")
    assert after < unigram - 0.3 < before
