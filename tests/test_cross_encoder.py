"""A cross-encoder's losses are the literal ones, and what was trained is what the engine computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.prompts import Group, encode_pairs
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.tasks.cross_encoder import CrossEncoderSettings
from kaggle_llm.tasks.cross_encoder_training import (
    LabelledPair,
    collect_lists,
    collect_pairs,
    group_pairs,
    label_pairs,
    load_cross_encoder,
    make_cross_encoder_trainer,
    train_cross_encoder,
)
from kaggle_llm.training import trainer as training_loop
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job

WORDS = [
    "the",
    "digit",
    "fraction",
    "tom",
    "adds",
    "rectangle",
    "area",
    "percent",
    "equation",
    "divides",
    "forgets",
    "carry",
    "width",
    "hundred",
    "sign",
    "bigger",
]
PAIRS = [  # three queries with 4, 3 and 2 documents of different lengths; hard and soft labels
    LabelledPair(f"{WORDS[query]} {WORDS[query + 3]}", " ".join(WORDS[place : place + 2 + place % 4]), label)
    for query, labels in ((0, (0.0, 1.0, 0.0, 0.0)), (5, (0.7, 0.3, 0.0)), (9, (0.2, 1.0)))
    for place, label in enumerate(labels, start=query)
]
POINTWISE = CrossEncoderSettings(max_tokens=48)
LISTWISE = CrossEncoderSettings(loss="listwise", max_tokens=48)


def make_job(base: Path, folder: Path, method: Any = "lora", **changes: Any) -> Job:
    training = TrainingSettings(**({"batch": 4, "learning_rate": 1e-2, "checkpoint_steps": 1, "warmup": 0.0} | changes))
    return Job(base, folder, LoraSettings(method=method, r=4, alpha=8), training, seed=3)


def train(settings: CrossEncoderSettings, job: Job) -> list[dict[str, Any]]:
    """Train on PAIRS and return the log's steps."""
    train_cross_encoder(settings, PAIRS, job)
    rows = [json.loads(line) for line in (job.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]


def predict(folder: Path) -> np.ndarray:
    """Score of every pair, as an experiment's predict.py computes it."""
    prompts = encode_pairs(load_tokenizer(folder), [p.query for p in PAIRS], [p.document for p in PAIRS], 48)
    return np.concatenate(TransformersEngine(folder, EngineSettings(batch_tokens=64)).logits(prompts))


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def literal_loss(scores: np.ndarray, loss: str) -> float:
    """Binary cross-entropy, or Σ −share · log softmax over a query's documents; mean over pairs or queries."""
    if loss == "pointwise":
        labels, odds = np.array([pair.label for pair in PAIRS]), 1 / (1 + np.exp(-scores.astype(float)))
        return float(-(labels * np.log(odds) + (1 - labels) * np.log(1 - odds)).mean())
    losses = []
    for query in dict.fromkeys(pair.query for pair in PAIRS):
        places = [place for place, pair in enumerate(PAIRS) if pair.query == query]
        labels, own = np.array([PAIRS[place].label for place in places]), scores[places].astype(float)
        losses.append(-(labels / labels.sum() * (own - np.log(np.exp(own).sum()))).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("settings", [POINTWISE, LISTWISE], ids=lambda settings: settings.loss)
@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
@pytest.mark.parametrize("batch_tokens", [64, 4000])
def test_a_steps_loss_is_the_literal_one_in_parts_or_at_once(
    request: pytest.FixtureRequest, tmp_path: Path, settings: CrossEncoderSettings, base: str, batch_tokens: int
) -> None:
    import torch

    folder = request.getfixturevalue(base)
    job = make_job(folder, tmp_path / "run", batch=99, batch_tokens=batch_tokens, learning_rate=1e-9)
    model = load_cross_encoder(settings, job).eval()
    prompts = encode_pairs(model.tokenizer, [p.query for p in PAIRS], [p.document for p in PAIRS], 48)
    with torch.no_grad():  # every pair alone
        scores = np.array(
            [
                model({"input_ids": torch.tensor([p]), "attention_mask": torch.ones(1, len(p))})["scores"].item()
                for p in prompts
            ]
        )
    model.train = lambda mode=True: model  # no dropout, so that there is one right number
    log = run_one_step(model, settings, job)
    assert log == pytest.approx(literal_loss(scores, settings.loss), abs=1e-5)


def run_one_step(model: Any, settings: CrossEncoderSettings, job: Job) -> float:
    """The loss of the trainer's only step."""
    from kaggle_llm.tasks.cross_encoder_training import measure_list
    from kaggle_llm.training.plan import plan_training

    lists = group_pairs(PAIRS, settings)
    lengths = [measure_list(one, model.tokenizer, 48) for one in lists]
    (share,) = plan_training(lengths, [1.0] * len(lists), True, job.training, job.seed)
    assert (len(share.parts) > 1) == (job.training.batch_tokens == 64)
    values = {
        "output_dir": str(job.folder),
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    trainer = make_cross_encoder_trainer(model, values, settings, lists, [share])
    trainer.train()
    return trainer.state.log_history[-1]["train_loss"]


@pytest.mark.parametrize("settings", [POINTWISE, LISTWISE], ids=lambda settings: settings.loss)
@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("pico_encoder", "lora"),
        ("pico_llm", "lora"),
        pytest.param("pico_encoder", "full", marks=pytest.mark.slow),
        pytest.param("pico_llm", "dora", marks=pytest.mark.slow),
        pytest.param("pico_llm", "qlora", marks=pytest.mark.slow),
    ],
)
def test_training_lowers_the_loss_of_the_engines_own_scores(
    request: pytest.FixtureRequest, tmp_path: Path, settings: CrossEncoderSettings, base: str, method: str
) -> None:
    rate = 3e-3 if method == "full" else 1e-2
    changes = {"epochs": 24, "batch": 3, "learning_rate": rate, "checkpoint_steps": 100}
    train(settings, make_job(request.getfixturevalue(base), tmp_path / "run", method, **changes))
    scores = predict(tmp_path / "run")
    assert scores.shape == (len(PAIRS),)
    assert literal_loss(scores, settings.loss) < 0.9 * literal_loss(0 * scores, settings.loss)  # that of no opinion
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
def test_what_was_trained_is_what_the_engine_computes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, method: str
) -> None:
    import torch

    from kaggle_llm.tasks import cross_encoder_training as cross_encoder

    kept: list[Any] = []
    save = cross_encoder.save_whole
    monkeypatch.setattr(cross_encoder, "save_whole", lambda model, *others: (kept.append(model), save(model, *others)))
    train(POINTWISE, make_job(request.getfixturevalue(base), tmp_path / "run", method, epochs=3))
    (model,) = kept
    with torch.no_grad():
        trained = model.eval()(model.preprocess([(pair.query, pair.document) for pair in PAIRS]))["scores"].view(-1)
    np.testing.assert_allclose(predict(tmp_path / "run"), trained.numpy(), atol=1e-5)
    assert np.ptp(trained.numpy()) > 0.01  # a thousand times the tolerance


def test_training_reads_token_ids_as_prediction_does_without_token_types(pico_encoder: Path, tmp_path: Path) -> None:
    model = load_cross_encoder(POINTWISE, make_job(pico_encoder, tmp_path / "run"))
    features = model.preprocess([(pair.query, pair.document) for pair in PAIRS], prompt=None, task=None)
    assert set(features) == {"input_ids", "attention_mask"}
    prompts = encode_pairs(load_tokenizer(pico_encoder), [p.query for p in PAIRS], [p.document for p in PAIRS], 48)
    rows = zip(features["input_ids"], features["attention_mask"], strict=True)
    assert [ids[mask == 1].tolist() for ids, mask in rows] == prompts


def test_pairs_are_joined_as_the_tokenizer_joins_two_texts_and_the_longer_one_is_cut(pico_llm: Path) -> None:
    tokenizer = load_tokenizer(pico_llm)
    first, second = (tokenizer(text)["input_ids"] for text in ("Tom adds", "the digit 7 in 4712 and forgets"))
    assert encode_pairs(tokenizer, ["Tom adds"], ["the digit 7 in 4712 and forgets"], 99) == [first + second]
    room = len(first) + 2
    assert encode_pairs(tokenizer, ["Tom adds"], ["the digit 7 in 4712 and forgets"], room) == [
        first[: room // 2] + second[: room - min(len(first), room // 2)]
    ]
    assert encode_pairs(tokenizer, [], [], 99) == []
    with pytest.raises(ValueError, match="2 first and 1 second texts"):
        encode_pairs(tokenizer, ["a", "b"], ["c"], 99)


def test_a_head_of_the_base_is_trained_further(pico_encoder: Path, tmp_path: Path) -> None:
    train(POINTWISE, make_job(pico_encoder, tmp_path / "first", epochs=2))
    train(POINTWISE, make_job(tmp_path / "first", tmp_path / "second", learning_rate=1e-12))
    np.testing.assert_allclose(predict(tmp_path / "second"), predict(tmp_path / "first"), atol=1e-5)


def test_a_dataset_smaller_than_one_batch_takes_one_step_an_epoch(pico_encoder: Path, tmp_path: Path) -> None:
    assert [row["step"] for row in train(LISTWISE, make_job(pico_encoder, tmp_path / "run", batch=64, epochs=2))] == [
        1,
        2,
    ]


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    pico_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    make = training_loop.make_callbacks
    changes = {"epochs": 2, "checkpoint_steps": 2}  # 3 steps an epoch
    undisturbed = train(POINTWISE, make_job(pico_encoder, tmp_path / "whole", **changes))
    job = make_job(pico_encoder, tmp_path / "killed", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "make_callbacks", lambda *arguments: [Kill(), *make(*arguments)])
        with pytest.raises(KeyboardInterrupt):
            train(POINTWISE, job)
    steps = train(POINTWISE, job)
    assert "resuming from checkpoint of step 2 of 6 steps" in capsys.readouterr().out
    assert [(row["step"], row["loss"]) for row in steps] == [(row["step"], row["loss"]) for row in undisturbed]
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, killed[name])


def test_groups_become_pairs_with_their_labels() -> None:
    groups = [Group("q", ("b", "a"), (1.0, 0.0)), Group("p", ("a",), (0.5,))]
    made = label_pairs(groups, {"p": "P", "q": "Q"}, {"a": "A", "b": "B"})
    assert made == [LabelledPair("Q", "B", 1.0), LabelledPair("Q", "A", 0.0), LabelledPair("P", "A", 0.5)]


@pytest.mark.parametrize("collect", [collect_pairs, collect_lists])
def test_labels_lie_where_the_model_does(collect: Any) -> None:
    import torch

    _, labels = collect(group_pairs(PAIRS, LISTWISE), torch.device("meta"))
    assert {label.device.type for label in labels} == {"meta"}


def test_soft_labels_of_a_list_become_shares() -> None:
    import torch

    lists = group_pairs(PAIRS, LISTWISE)
    assert [len(one) for one in lists] == [4, 3, 2]
    features, labels = collect_lists(lists, torch.device("cpu"))
    assert [len(documents) for documents in features[1]] == [4, 3, 2]
    shares = [[0, 1, 0, 0], [0.7, 0.3, 0], [0.2 / 1.2, 1 / 1.2]]
    for found, expected in zip(labels, shares, strict=True):
        np.testing.assert_allclose(found.softmax(0).numpy(), expected, atol=1e-6)


def test_labels_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 labels are not between 0 and 1, first \[-1.0, 2.0\]"):
        group_pairs([LabelledPair("q", "a", -1.0), LabelledPair("q", "b", 2.0)], POINTWISE)
    with pytest.raises(ValueError, match="listwise: 1 queries without a right document, first 'q'"):
        group_pairs([LabelledPair("q", "a", 0.0), LabelledPair("p", "a", 1.0)], LISTWISE)


def test_a_budget_below_the_first_list_is_refused(pico_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.tokens = 2: not even the first of 3 lists fits"):
        train(LISTWISE, make_job(pico_encoder, tmp_path / "run", tokens=2))
