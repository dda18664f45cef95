"""SmolLM2 fine-tuned on real data: pairwise judgements by letter, and summaries; before and after by the same code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import ROOT

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.choice import OrderSettings, Question, list_examples, rank_options
from kaggle_llm.inference.engine import EngineSettings, Sampling
from kaggle_llm.inference.maker import make_engine
from kaggle_llm.metrics import log_loss, rouge
from kaggle_llm.prompts import Prompter, PromptSettings, load_tokenizer
from kaggle_llm.rankings import make_ranking
from kaggle_llm.training.choice import ChoiceSettings, ChoiceTask
from kaggle_llm.training.generation import CompletionExample, GenerationTask, completion_log_loss
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, Task, fine_tune
from kaggle_llm.weights.merge import merge_adapter

DATA = ROOT.parent / "shared" / "data"
MODEL = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
NAMES = ("first", "second", "tie")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason="real data is absent: ../shared/data"),
]


def train_and_merge(task: Task[Any], examples: Sequence[Any], folder: Path, **settings: Any) -> Path:
    adapter, merged = folder / "adapter", folder / "merged"
    for made in (adapter, merged):
        made.mkdir()
    fine_tune(task, examples, Job(MODEL, adapter, LoraSettings(), TrainingSettings(**settings), 0))
    merge_adapter(MODEL, adapter, merged)
    return merged


def read_pairs(count: int) -> list[Question]:
    """Short pairs with the three annotators' votes as soft labels: 1 first, 2 second, 0 tie."""
    rows = json.loads((DATA / "pandalm" / "testset-v1.json").read_text(encoding="utf-8"))
    texts = ("instruction", "input", "response1", "response2")
    short = [row for row in rows if sum(len(str(row[name])) for name in texts) < 400]
    questions = []
    for row in short[:count]:
        votes = Counter(row[f"annotator{n}"] for n in (1, 2, 3))
        target = tuple(votes[vote] / 3 for vote in (1, 2, 0))
        options = ({"text": str(row["response1"])}, {"text": str(row["response2"])})
        questions.append(Question({"id": str(row["idx"]), "task": row["instruction"]}, NAMES, options, target))
    return questions


def test_pairwise_judgements_get_better(tmp_path: Path) -> None:
    settings = PromptSettings(
        shared="Task: {task}\n",
        candidate="Answer {letter}: {text}\n",
        ending="The better answer (A, B or C for both alike):",
        labels=[" A", " B"],
        others=[" C"],
        chat=False,
        budgets={"task": 64, "text": 64},
    )
    prompter = Prompter(load_tokenizer(MODEL), settings)
    questions = read_pairs(192)
    learned, held_out = questions[64:], questions[:64]
    majority = [NAMES[max(range(3), key=lambda k: (q.target or ())[k])] for q in held_out]
    truth = pl.DataFrame({"id": [str(q.row["id"]) for q in held_out], "items": [[name] for name in majority]})

    def measure(model: Path) -> float:
        engine = make_engine(model, EngineSettings())
        ranking = rank_options(held_out, prompter, engine, OrderSettings("both", "log"), Budget())
        engine.close()
        return log_loss(NAMES).score(ranking, truth)

    task = ChoiceTask(ChoiceSettings(form="labels"), prompter.labels)
    examples = list_examples(learned, prompter, "both", shuffle=False, seed=0)
    before = measure(MODEL)
    after = measure(train_and_merge(task, examples, tmp_path, batch_tokens=1024))
    print(f"log loss of {len(held_out)} held-out pairs: {before:.3f} before, {after:.3f} after")
    assert after < before - 0.05


def test_summaries_get_better(tmp_path: Path) -> None:
    settings = PromptSettings(shared="{abstract}\n", ending="In one sentence:", chat=False, budgets={"abstract": 100})
    prompter = Prompter(load_tokenizer(MODEL), settings)

    def read(name: str, count: int) -> list[dict[str, str]]:
        lines = (DATA / "scitldr" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        rows = [json.loads(line) for line in lines]
        return [{"id": str(n), "abstract": " ".join(r["source"]), "tldr": r["target"][0]} for n, r in enumerate(rows)]

    def make(rows: Sequence[dict[str, str]]) -> list[CompletionExample]:
        return [CompletionExample(tuple(prompter.row(r)), tuple(prompter.completion(" " + r["tldr"]))) for r in rows]

    learned, held_out = read("train", 48), read("dev", 12)
    truth = pl.DataFrame({"id": [row["id"] for row in held_out], "items": [[row["tldr"]] for row in held_out]})

    def measure(model: Path) -> tuple[float, float]:
        """Log loss of the true summaries' tokens; ROUGE-L of what the model writes itself."""
        engine = make_engine(model, EngineSettings())
        answers = engine.generate([prompter.row(row) for row in held_out], Sampling(max_tokens=32))
        engine.close()
        texts = [one.text.strip() for (one,) in answers]
        ranking = make_ranking(truth["id"].to_list(), [[text] for text in texts], [[0.0]] * len(texts))
        return completion_log_loss(model, make(held_out)), rouge("rougeL").score(ranking, truth)

    (before, rouge_before) = measure(MODEL)
    (after, rouge_after) = measure(train_and_merge(GenerationTask(), make(learned), tmp_path, batch_tokens=1024))
    print(f"log loss of {len(held_out)} summaries: {before:.3f} before, {after:.3f} after")
    print(f"ROUGE-L: {rouge_before:.3f} before, {rouge_after:.3f} after")
    assert after < before - 0.02
    assert rouge_after > 0.08, "what it writes is still about the paper; 48 rows do not raise ROUGE-L of 12"
