"""Token labels: the loss is the sum over labelled tokens, whatever is computed together; every method learns."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from kaggle_llm.competition.spans import NO_LABEL
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.tasks.tags_training import TokenExample, TokenSettings, TokenTask
from kaggle_llm.training.base_model import load_trainable
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.merge import merge_adapter

SETTINGS = TokenSettings(["O", "B-place", "I-place"])
TASK = TokenTask(SETTINGS)


def make_examples(lengths: list[int], seed: int = 0) -> list[TokenExample]:
    """A token's label follows from its id, every fourth carries no loss."""
    rng = random.Random(seed)
    rows = [rng.choices(range(6, 290), k=length) for length in lengths]
    labels = [[NO_LABEL if place % 4 == 0 else token % 3 for place, token in enumerate(row)] for row in rows]
    return [TokenExample(tuple(row), tuple(found)) for row, found in zip(rows, labels, strict=True)]


@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
def test_the_loss_is_that_of_labelled_tokens_of_each_row_alone(base: str, request: pytest.FixtureRequest) -> None:
    import torch

    examples, full = make_examples([2, 50, 9]), LoraSettings(method="full")
    folder = request.getfixturevalue(base)
    model = load_trainable(folder, "token", full, TrainingSettings(), 0, **TASK.config()).eval()
    expected = []
    for example in examples:
        with torch.no_grad():
            rows = model(torch.tensor([example.ids])).logits[0].tolist()
        expected.append(
            sum(
                math.log(sum(math.exp(z) for z in row)) - row[label]
                for row, label in zip(rows, example.labels, strict=True)
                if label != NO_LABEL
            )
        )
    assert TASK.loss(model, examples).item() == pytest.approx(sum(expected), rel=1e-5)
    for example, value in zip(examples, expected, strict=True):
        assert TASK.loss(model, [example]).item() == pytest.approx(value, rel=1e-5)
    assert model.config.id2label == {0: "O", 1: "B-place", 2: "I-place"}


def test_a_step_is_a_mean_over_labelled_tokens_not_rows(pico_encoder: Path, tmp_path: Path) -> None:
    """Logged loss of the only step: Σ loss / Σ labelled tokens, with rows of 1 and of 37 of them."""
    examples = make_examples([2, 50])
    assert [TASK.weight(example) for example in examples] == [1, 37]
    base = shutil.copytree(pico_encoder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # dropout would move the logged loss
    (base / "config.json").write_text(json.dumps(config))
    training = TrainingSettings(learning_rate=1e-6, batch_tokens=50)  # a part for each
    full = LoraSettings(method="full")
    fine_tune(TASK, examples, Job(base, tmp_path / "trained", full, training, 0))
    (row, *_) = map(json.loads, (tmp_path / "trained" / "log.jsonl").read_text().splitlines())
    model = load_trainable(base, "token", full, training, 0, **TASK.config()).eval()
    alone = [TASK.loss(model, [example]).item() for example in examples]
    assert row["loss"] == pytest.approx(sum(alone) / 38, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full", pytest.param("qlora", marks=pytest.mark.slow)])
def test_every_method_learns_its_rows_and_predicts_them_from_a_merged_folder(
    method: Any, pico_encoder: Path, tmp_path: Path
) -> None:
    examples = make_examples([5, 12, 8], seed=1)
    training = TrainingSettings(epochs=60, learning_rate=1e-2, head_learning_rate=3e-2, warmup=0.0)
    job = Job(pico_encoder, tmp_path / "trained", LoraSettings(method=method, r=8, alpha=16), training, seed=0)
    fine_tune(TASK, examples, job)
    merge_adapter(pico_encoder, job.folder, tmp_path / "merged")
    engine = make_engine(tmp_path / "merged", EngineSettings())
    logits = engine.logits([example.ids for example in examples])
    engine.close()
    pairs = [
        (row.argmax(), label)
        for rows, example in zip(logits, examples, strict=True)
        for row, label in zip(rows, example.labels, strict=True)
        if label != NO_LABEL
    ]
    assert len(pairs) == 18
    assert sum(found == label for found, label in pairs) >= 17


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((NO_LABEL, NO_LABEL), "an example of 2 tokens has 2 labels, 0 of them with a loss"),
        ((0,), "an example of 2 tokens has 1 labels"),
        ((0, 3), r"label\(s\) \[3\]: there are 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.weight(TokenExample((7, 8), labels))


def test_tags_that_occur_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="labels = "):
        TokenSettings(["O", "B-x", "O"])
