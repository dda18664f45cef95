"""A head's pooling is its formula over the hidden states, in training and prediction, of encoders and causal models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_heads import ALL, CLASSES, LABELS, LEVELS, VALUES, load_head, make_examples, make_rows

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks import heads
from kaggle_llm.tasks.heads import Pooling, pool_tokens
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, TrickSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.training.tricks import apply_tricks, find_head
from kaggle_llm.weights.merge import merge_adapter

BASES = ["pico_encoder", "pico_llm"]


def pool_states(states: np.ndarray, pooling: Pooling, head: Any) -> np.ndarray:
    """What the literal formula gives: the head's answer to the pooled states [tokens, d]."""
    weight, bias = head.weight.detach().numpy(), 0.0 if head.bias is None else head.bias.detach().numpy()
    if pooling == "attention":
        scores = states @ weight[-1] + (0.0 if head.bias is None else bias[-1])
        shares = np.exp(scores) / np.exp(scores).sum()
        return (weight @ (shares[:, None] * states).sum(0) + bias)[:-1]
    return weight @ (states[-1] if pooling == "last" else states.mean(0)) + bias


@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
@pytest.mark.parametrize("base", BASES)
def test_padded_rows_in_training_and_prediction_are_the_formula_for_each_alone(
    base: str, pooling: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import torch

    folder = request.getfixturevalue(base)
    task = HeadTask(replace(CLASSES, pooling=pooling))
    model, examples = load_head_of(folder, task), make_examples(CLASSES)
    with torch.no_grad():
        states = [model.base_model(torch.tensor([example.ids])).last_hidden_state[0].numpy() for example in examples]
        found = torch.stack(list(task.logits(model, examples))).numpy()
    expected = np.stack([pool_states(row, pooling, find_head(model)) for row in states])
    assert expected.shape == (len(examples), len(LABELS)) and expected.std() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    load_tokenizer(folder).save_pretrained(tmp_path)
    engine = make_engine(tmp_path, EngineSettings())
    answered = [pool_tokens(row, pooling) for row in engine.logits([example.ids for example in examples])]
    engine.close()
    np.testing.assert_allclose(answered, expected, atol=1e-5)


def load_head_of(base: Path, task: HeadTask) -> Any:
    """With a head whose outputs are far from all alike."""
    import torch

    from kaggle_llm.training.base_model import load_trainable

    model = load_trainable(base, task.kind, ALL, TrainingSettings(), 0, **task.config()).eval()
    torch.nn.init.normal_(find_head(model).weight, std=0.5)
    return model


def test_the_last_token_of_a_causal_model_is_what_its_own_class_reads(pico_llm: Path) -> None:
    import torch

    own, pooled = HeadTask(LEVELS), HeadTask(replace(LEVELS, pooling="last"))
    first, second, examples = load_head(pico_llm, own), load_head_of(pico_llm, pooled), make_examples(LEVELS)
    with torch.no_grad():
        second.score.weight.copy_(first.score.weight)
        second.score.bias.zero_()
        expected = torch.stack(list(own.logits(first, examples)))
        found = torch.stack(list(pooled.logits(second, examples)))
    torch.testing.assert_close(found, expected)


def test_the_scores_of_the_tokens_are_one_more_output_that_large_numbers_do_not_break() -> None:
    names = HeadTask(replace(CLASSES, pooling="attention")).config()["id2label"]
    assert list(names.values()) == [*LABELS, "attention"]
    tokens = np.array([[1.0, 2.0, 900.0], [5.0, 6.0, 900.0], [7.0, 7.0, -900.0]], np.float32)
    assert pool_tokens(tokens, "attention").tolist() == [3.0, 4.0]
    assert pool_tokens(tokens, "last").tolist() == [7.0, 7.0, -900.0]
    assert pool_tokens(tokens, "mean").tolist() == pytest.approx([13 / 3, 5.0, 300.0])


@pytest.mark.parametrize(
    ("base", "method", "pooling"),
    [
        ("pico_encoder", "full", "attention"),
        pytest.param("pico_encoder", "lora", "mean", marks=pytest.mark.slow),
        pytest.param("pico_llm", "lora", "attention", marks=pytest.mark.slow),
        pytest.param("pico_llm", "dora", "mean", marks=pytest.mark.slow),
    ],
)
def test_a_pooled_head_learns_its_rows_and_predicts_them_from_a_merged_folder(
    base: str, method: Any, pooling: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, task = request.getfixturevalue(base), HeadTask(replace(CLASSES, pooling=pooling))
    labels, rows = ["low", "top", "middle", "low", "high", "top"], make_rows(6, seed=3)
    targets = [tuple(float(label == other) for other in LABELS) for label in labels]
    examples = [HeadExample(ids, target) for ids, target in zip(rows, targets, strict=True)]
    training = TrainingSettings(epochs=40, batch=8, learning_rate=1e-2, head_learning_rate=3e-2, warmup=0.0)
    job = Job(folder, tmp_path / "trained", LoraSettings(method=method, r=4, alpha=8), training, seed=0)
    fine_tune(task, examples, job)
    merge_adapter(folder, job.folder, tmp_path / "merged")
    engine = make_engine(tmp_path / "merged", EngineSettings())
    answers = [pool_tokens(row, pooling) for row in engine.logits(rows)]
    engine.close()
    assert heads.rank_classes([*"abcdef"], answers, LABELS)["items"].list.first().to_list() == labels


def test_another_models_answers_and_tricks_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\), but head.pooling = mean reads tokens"):
        pool_tokens(np.zeros(4), "mean")
    with pytest.raises(ValueError, match=r"shape \[\(7, 4\)\]: this head has 4"):
        heads.rank_classes(["a"], [np.zeros((7, 4))], LABELS)
    task = HeadTask(replace(VALUES, pooling="mean"))
    with pytest.raises(ValueError, match=r"multi_sample_dropout: .*set head.pooling=model"):
        apply_tricks(task, [], TrickSettings(multi_sample_dropout=3))
