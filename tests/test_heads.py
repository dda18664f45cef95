"""A head's loss is its formula row by row; it learns by every method, is merged, and is ranked by one path."""

import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.competition.rankings import check_answer, check_ranking
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks import heads as ranks
from kaggle_llm.tasks.distillation import DistillationSettings
from kaggle_llm.tasks.heads import HeadSettings, ordinal_target
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask, check_targets
from kaggle_llm.training.base_model import load_trainable
from kaggle_llm.training.optimizer import group_parameters
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.merge import merge_adapter

LABELS = ["low", "middle", "high", "top"]
CLASSES = HeadSettings("classification", LABELS)
LEVELS = HeadSettings("ordinal", LABELS)
VALUE = HeadSettings("regression")
SEVERAL = HeadSettings("multilabel", targets=["toxic", "insult", "threat"])
VALUES = HeadSettings("regression", targets=["content", "wording"], scales=[[3.0, 2.0], [-40.0, 0.5]])
TARGETS: dict[str, list[tuple[float, ...]]] = {
    "classification": [(0.0, 1.0, 0.0, 0.0), (0.2, 0.0, 0.5, 0.3), (0.0, 0.0, 0.0, 1.0)],
    "regression": [(0.5,), (-3.0,), (40.0,)],
    "multilabel": [(0.0, 0.0, 0.0), (1.0, 0.0, 0.3), (1.0, 1.0, 1.0)],
    "ordinal": [ordinal_target(0, 4), ordinal_target(2, 4), ordinal_target(3, 4)],
}
ALL = LoraSettings(method="full")


def make_rows(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Token ids of very different lengths; those of both pico models, padding apart."""
    rng = random.Random(seed)
    return [tuple(rng.choices(range(6, 290), k=rng.choice([2, 7, 40]))) for _ in range(count)]


def make_examples(settings: HeadSettings) -> list[HeadExample]:
    targets = TARGETS[settings.task]
    return [HeadExample(ids, target) for ids, target in zip(make_rows(len(targets)), targets, strict=True)]


def load_head(base: Path, task: HeadTask) -> Any:
    return load_trainable(base, "sequence", ALL, TrainingSettings(), 0, **task.config()).eval()


def literal_logits(model: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Every row alone, nothing padded."""
    import torch

    with torch.no_grad():
        return np.array([model(torch.tensor([list(row)])).logits[0].tolist() for row in rows])


def literal_loss(task: str, logits: Sequence[float], target: Sequence[float]) -> float:
    if task == "classification":
        total = math.log(sum(math.exp(z) for z in logits))
        return -sum(t * (z - total) for t, z in zip(target, logits, strict=True))
    if task == "regression":
        return (logits[0] - target[0]) ** 2
    sigmoid = [1 / (1 + math.exp(-z)) for z in logits]
    total = -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(target, sigmoid, strict=True))
    return total / len(logits) if task == "multilabel" else total


@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
@pytest.mark.parametrize("settings", [CLASSES, VALUE, LEVELS, SEVERAL], ids=lambda settings: settings.task)
def test_the_loss_of_padded_rows_is_the_formula_for_each_alone(
    settings: HeadSettings, base: str, request: pytest.FixtureRequest
) -> None:
    task, examples = HeadTask(settings), make_examples(settings)
    model = load_head(request.getfixturevalue(base), task)
    logits = literal_logits(model, [example.ids for example in examples])
    expected = [literal_loss(settings.task, z, example.target) for z, example in zip(logits, examples, strict=True)]
    assert len({round(value, 3) for value in expected}) == 3
    assert task.loss(model, examples).item() == pytest.approx(sum(expected), rel=1e-5)
    for example, value in zip(examples, expected, strict=True):
        assert task.loss(model, [example]).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
def test_each_of_several_targets_counts_in_units_of_its_own_scale(base: str, request: pytest.FixtureRequest) -> None:
    task = HeadTask(VALUES)
    examples = [
        HeadExample(ids, target) for ids, target in zip(make_rows(2), [(5.0, -41.0), (3.0, -40.0)], strict=True)
    ]
    model = load_head(request.getfixturevalue(base), task)
    logits = literal_logits(model, [example.ids for example in examples])
    expected = sum(((z - t) ** 2).mean() for z, t in zip(logits, np.array([[1.0, -2.0], [0.0, 0.0]]), strict=True))
    assert task.loss(model, examples).item() == pytest.approx(expected, rel=1e-5)
    assert model.config.id2label == {0: "content", 1: "wording"}


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ("pico_encoder", "lora"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("pico_encoder", "full"), ("pico_llm", "lora"))),
    ],
)
def test_the_scale_of_the_targets_stays_with_the_head(
    base: str, method: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """From the training, as an adapter or whole, to the merged folder, whose answers are in the targets' units."""
    folder, rows = request.getfixturevalue(base), make_rows(6, seed=3)
    assert ranks.read_scales(folder) == []
    targets = [(float(n), -40.0 + n % 2) for n in range(6)]
    examples = [HeadExample(ids, target) for ids, target in zip(rows, targets, strict=True)]
    training = TrainingSettings(epochs=60, batch=8, learning_rate=1e-2, head_learning_rate=3e-2, warmup=0.0)
    job = Job(folder, tmp_path / "trained", LoraSettings(method=method, r=4, alpha=8), training, seed=0)
    fine_tune(HeadTask(VALUES), examples, job)
    merge_adapter(folder, job.folder, tmp_path / "merged")
    assert ranks.read_scales(job.folder) == ranks.read_scales(tmp_path / "merged") == VALUES.scales
    engine = make_engine(tmp_path / "merged", EngineSettings())
    found = ranks.predict_values([*"abcdef"], engine.logits(rows), 2, ranks.read_scales(tmp_path / "merged"))
    engine.close()
    difference = (np.array(found["values"].to_list()) - targets) / np.array(VALUES.scales)[:, 1]
    assert np.abs(difference).mean() < 0.3


@pytest.fixture(scope="module")
def padless(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model without a padding token, as GPT-2 and Llama-3 are: id 0 is a token like any other."""
    folder = tmp_path_factory.mktemp("heads") / "padless"
    shutil.copytree(pico_llm, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).pad_token_id is None
    return folder


ENDS_IN_0 = [(7, 8), (7, 8, 0), (9, 0, 0, 0), (1, 2, 3, 4, 5, 6)]


def test_a_causal_head_reads_the_last_token_whatever_its_id(padless: Path, tmp_path: Path) -> None:
    task = HeadTask(CLASSES)
    model = load_head(padless, task)
    model.save_pretrained(tmp_path)
    load_tokenizer(padless).save_pretrained(tmp_path)
    model.config.pad_token_id = None  # alone, transformers then reads the last token
    expected = literal_logits(model, ENDS_IN_0)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(make_engine(tmp_path, EngineSettings()).logits(ENDS_IN_0), expected, atol=1e-4)
    target = TARGETS["classification"][0]
    loss = task.loss(model, [HeadExample(ids, target) for ids in ENDS_IN_0]).item()
    assert loss == pytest.approx(sum(literal_loss("classification", z, target) for z in expected), rel=1e-5)


def test_a_teacher_is_mixed_in_at_its_temperature(pico_encoder: Path) -> None:
    task = HeadTask(CLASSES, DistillationSettings(weight=0.3, temperature=2.0))
    plain = make_examples(CLASSES)
    scores = (-0.1, -3.0, -4.0, -5.0)
    taught = [HeadExample(plain[0].ids, plain[0].target, scores), *plain[1:]]
    model = load_head(pico_encoder, task)
    (z, *_) = literal_logits(model, [plain[0].ids])
    teacher, student = (np.exp(np.divide(v, 2)) / np.exp(np.divide(v, 2)).sum() for v in (scores, z))
    soft = 4 * (teacher * np.log(teacher / student)).sum()
    hard = literal_loss("classification", z, plain[0].target)
    change = task.loss(model, taught).item() - task.loss(model, plain).item()
    assert change == pytest.approx(0.3 * (soft - hard), abs=1e-4)
    assert abs(change) > 0.01


METHODS = [("pico_encoder", "lora"), ("pico_encoder", "full")]
METHODS += [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("pico_encoder", "qlora"), ("pico_llm", "dora"))]


@pytest.mark.parametrize(("base", "method"), METHODS)
def test_every_method_learns_its_rows_and_predicts_them_from_a_merged_folder(
    base: str, method: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Six rows, less than a batch."""
    folder, task = request.getfixturevalue(base), HeadTask(CLASSES)
    labels = ["low", "top", "middle", "low", "high", "top"]
    rows = make_rows(6, seed=3)
    targets = [tuple(float(label == other) for other in LABELS) for label in labels]
    examples = [HeadExample(ids, target) for ids, target in zip(rows, targets, strict=True)]
    check_targets(CLASSES, examples)
    training = TrainingSettings(epochs=40, batch=8, learning_rate=1e-2, head_learning_rate=3e-2, warmup=0.0)
    job = Job(folder, tmp_path / "trained", LoraSettings(method=method, r=4, alpha=8), training, seed=0)
    fine_tune(task, examples, job)
    merge_adapter(folder, job.folder, tmp_path / "merged")
    engine = make_engine(tmp_path / "merged", EngineSettings())
    found = ranks.rank_classes([*"abcdef"], engine.logits(rows), LABELS)
    engine.close()
    assert [items[0] for items in found["items"].to_list()] == labels


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("base", "names"), [("pico_encoder", ["classifier", "pooler"]), ("pico_llm", ["score"])])
def test_the_head_has_its_own_learning_rate(
    base: str, names: list[str], method: Any, request: pytest.FixtureRequest
) -> None:
    training = TrainingSettings(learning_rate=1e-4, head_learning_rate=0.5)
    task, lora = HeadTask(CLASSES), LoraSettings(method=method, r=2)
    model = load_trainable(request.getfixturevalue(base), "sequence", lora, training, 0, **task.config())
    fast = {id(one) for group in group_parameters(model, training) if group["lr"] == 0.5 for one in group["params"]}
    found = {name for name, weight in model.named_parameters() if id(weight) in fast}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    mark = "modules_to_save" if method == "lora" else f"{names[0]}."
    assert {name for name in trained if mark in name} <= found < trained
    assert found and all(any(part in name for part in names) for name in found)


@pytest.mark.parametrize(
    ("settings", "problem", "names"),
    [
        (CLASSES, "single_label_classification", LABELS),
        (VALUE, "regression", ["value"]),
        (LEVELS, "multi_label_classification", ["more than low", "more than middle", "more than high"]),
    ],
    ids=["classification", "regression", "ordinal"],
)
def test_the_config_says_what_each_logit_means(
    settings: HeadSettings, problem: str, names: list[str], pico_encoder: Path
) -> None:
    config = load_head(pico_encoder, HeadTask(settings)).config
    assert (config.num_labels, config.problem_type) == (len(names), problem)
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}


def test_targets_by_hand() -> None:
    assert [ordinal_target(level, 3) for level in range(3)] == [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    with pytest.raises(ValueError, match="level 3: there are 3"):
        ordinal_target(3, 3)


@pytest.mark.parametrize(
    ("settings", "targets", "message"),
    [
        (CLASSES, [], "no example to train a classification head on: the fold is empty"),
        (CLASSES, [(0.0, 1.0, 0.0, 0.0)] * 3, "all 3 examples have the target"),
        (LEVELS, [(1.0, 1.0, 0.0)] * 2, "there is nothing to learn"),
        (VALUE, [(2.5,)] * 2, "there is nothing to learn"),
        (CLASSES, [(0.5, 0.5), (1.0, 0.0)], r"target \(0.5, 0.5\): a classification head here has 4"),
        (CLASSES, [(0.5, 0.5, 0.5, 0.0)], "shares of the labels are 0 or more and sum to 1"),
        (VALUE, [(math.nan,), (1.0,)], "1 finite value"),
    ],
)
def test_a_fold_with_nothing_to_learn_is_refused(
    settings: HeadSettings, targets: list[tuple[float, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(settings, [HeadExample((7, 8), target) for target in targets])


def test_a_target_of_another_width_and_a_teacher_of_values_never_reach_the_loss(pico_encoder: Path) -> None:
    model = load_head(pico_encoder, HeadTask(CLASSES))
    with pytest.raises(ValueError, match=r"target \(1.0,\): a classification head here has 4"):
        HeadTask(CLASSES).loss(model, [HeadExample((7, 8), (1.0,))])
    with pytest.raises(ValueError, match="only classification has one"):
        HeadTask(VALUE).loss(model, [HeadExample((7, 8), (1.0,), (1.0,))])


@pytest.mark.parametrize(
    ("task", "labels"),
    [("regression", ["a"]), ("regression", ["a", "a"]), ("classification", ["a"]), ("ordinal", ["a", "b", "a"])],
)
def test_labels_that_do_not_fit_the_task_are_refused(task: Any, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="labels = "):
        HeadSettings(task, labels)


def test_classes_are_ranked_by_their_log_probabilities() -> None:
    logits = [np.array([0.0, math.log(3)], dtype=np.float32), np.array([1000.0, 0.0], dtype=np.float32)]
    found = check_ranking(ranks.rank_classes(["a", "b"], logits, ["no", "yes"]), ["a", "b"])
    assert found["items"].to_list() == [["yes", "no"], ["no", "yes"]]
    assert found["scores"][0].to_list() == pytest.approx([math.log(0.75), math.log(0.25)])
    assert found["scores"][1].to_list() == pytest.approx([0.0, -1000.0])


def test_values_and_expected_levels_are_numbers() -> None:
    values = ranks.predict_values(["a", "b"], [np.array([2.5]), np.array([-1e-3])])
    assert check_answer(values, ["a", "b"])["values"].to_list() == [[2.5], [-1e-3]]
    both = ranks.predict_values(["a"], [np.array([2.5, 1.0])], targets=2)
    assert both["values"].to_list() == [[2.5, 1.0]]
    both = ranks.predict_values(["a"], [np.array([2.5, 1.0])], 2, VALUES.scales)
    assert both["values"].to_list() == [[8.0, -39.5]]
    logits = [np.array([800.0, 0.0, -800.0]), np.array([math.log(3), -math.log(3), -math.log(9)])]
    levels = check_answer(ranks.predict_levels(["a", "b"], logits, 4), ["a", "b"])
    assert levels["values"].list.first().to_list() == pytest.approx([1.5, 0.75 + 0.25 + 0.1])


def test_the_simplest_rules_know_the_training_rows_only() -> None:
    prior = check_ranking(ranks.rank_prior(["a", "b"], ["x", "y", "z"], [(0, 1, 0), (0, 0.5, 0.5)]), ["a", "b"])
    assert prior["items"].to_list() == [["y", "z", "x"]] * 2
    assert prior["scores"][1].to_list() == pytest.approx([math.log(share / 5) for share in (2.5, 1.5, 1)])
    mean = check_answer(ranks.predict_mean(["a", "b"], [(1.0, 0.0), (2.0, 5.0), (6.0, 1.0)]), ["a", "b"])
    assert mean["values"].to_list() == [[3.0, 2.0]] * 2


def test_no_rows_are_ranked_as_none_and_another_heads_logits_are_refused() -> None:
    empty = (ranks.rank_classes([], [], LABELS), ranks.predict_values([], []), ranks.predict_levels([], [], 4))
    assert [check_answer(ranking, []).height for ranking in empty] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"shape \[\(3,\)\]: this head has 4"):
        ranks.rank_classes(["a"], [np.zeros(3)], LABELS)
