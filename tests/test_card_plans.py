"""kaggle-llm plan: which models and trainings it plans, what it says of cards, and what makes it fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from pico import save_llama

from kaggle_llm.base.accelerators import ACCELERATORS, RENTED, find_accelerator, find_card
from kaggle_llm.engines.footprint import Estimate, Memory
from kaggle_llm.runtime import card_plans
from kaggle_llm.runtime.card_plans import Model, Training, find_ways, needed_bytes, plan_run, plan_trainings, read_speed
from kaggle_llm.training import estimate as estimates
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

GIB = 2**30
TRAIN = 'part.learn(\n    "reader", GenerationTask(), make_examples)\n'


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico_encoder: Path) -> dict[str, Any]:
    """A config with a model that is trained and an encoder that is not."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    (tmp_path / "exp" / "exp001").mkdir(parents=True)
    (tmp_path / "exp" / "exp001" / "train.py").write_text(TRAIN)
    reader = save_llama(tmp_path / "reader")
    config: dict[str, Any] = {
        "models": {"reader": str(reader), "encoder": str(pico_encoder)},
        "training": {"tokens": 5000, "epochs": 2, "batch_tokens": 512},
        "prompt": {"shared": "{text}", "budgets": {"text": 60}, "chat": False},
    }
    monkeypatch.setattr(card_plans, "read_run_config", lambda run: config)
    return config


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_planned_by_its_models_and_what_train_py_trains(experiment: dict[str, Any]) -> None:
    rows = plan_run("exp001", "4090", price=2.0)
    assert [(row[0], row[1].split(":")[0]) for row in rows] == [
        ("reader", "train"),
        ("reader", "infer"),
        ("encoder", "infer"),
    ]
    assert "bfloat16" in rows[0][1] and "fits" in rows[0][3] and "of 23.6 GiB" in rows[0][3]
    assert "10,000 tokens" in rows[0][4] and "at 2 an hour" in rows[0][4] and "assumed" in rows[0][4]
    assert "keys and values" in rows[1][3] and "keys and values" not in rows[2][3]
    (plan,) = plan_trainings("exp001", experiment, ACCELERATORS["NvidiaTeslaT4"])
    assert plan.training.dtype == "float16", "what a T4 computes"
    assert list(plan_trainings("exp001", {**experiment, "training": None}, RENTED["4090"])) == []


def test_cards_are_found_by_short_names_and_kaggles_accelerators_stay_apart() -> None:
    assert find_card("t4x2") is ACCELERATORS["NvidiaTeslaT4"] and find_card("NvidiaL4").count == 4
    assert not set(RENTED) & set(ACCELERATORS)
    with pytest.raises(ValueError, match="no accelerator '4090'"):
        find_accelerator("4090")
    with pytest.raises(ValueError, match=r"no card 'a10': there are 3090, 4090, .*t4x2"):
        find_card("a10")
    with pytest.raises(ValueError, match="no card 'none'"):
        find_card("none")
    for card in RENTED.values():
        assert card.memory_gb and card.half_flops and card.bandwidth and card.driver_name and card.why


@pytest.mark.filterwarnings("ignore")
def test_auto_batch_tokens_are_those_that_fit_the_card(
    experiment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a MiB a token, of 23.6 and 14.56 GiB less CUDA's 0.7 and 5 %: 22,331 and 13,516 tokens."""

    def estimate(config: Any, kind: Any, lora: Any, training: Any, batch: Any) -> Estimate:
        return Estimate(Memory(0.0, 0.0, 0.0, 0.0, 2.0**20 * batch.tokens), 1.0, 1.0)

    monkeypatch.setattr(estimates, "estimate_training", estimate)
    experiment["training"] = {"batch_tokens": "auto"}
    for name, tokens in (("4090", 2**14), ("t4x2", 2**13)):
        (plan,) = plan_trainings("exp001", experiment, find_card(name))
        assert plan.training.batch_tokens == tokens


def plan_of(sizes: dict[tuple[str, bool], float], monkeypatch: pytest.MonkeyPatch) -> Training:
    """A training that takes so many GiB, by method and checkpointing, at 2048 tokens; a smaller batch takes less."""

    def estimate(config: Any, kind: Any, lora: LoraSettings, training: TrainingSettings, batch: Any) -> Estimate:
        size = sizes[lora.method, training.gradient_checkpointing] * GIB
        return Estimate(Memory(0.0, 0.0, 0.0, 0.0, size * batch.tokens / 2048), 1.0, 1.0)

    monkeypatch.setattr(card_plans, "estimate_training", estimate)
    model = Model("m", None, "causal")
    return Training(model, LoraSettings("lora"), TrainingSettings(dtype="bfloat16"), 512, 0.1)


@pytest.mark.parametrize(
    ("sizes", "ways"),
    [
        ((30, 20, 30, 10), ["training.gradient_checkpointing=true"]),
        ((30, 20, 20, 10), ["training.gradient_checkpointing=true", "lora.method=qlora"]),
        ((30, 30, 30, 20), ["training.gradient_checkpointing=true lora.method=qlora"]),
        ((50, 50, 50, 50), ["training.gradient_checkpointing=true lora.method=qlora training.batch_tokens=512"]),
        ((9000, 9000, 9000, 9000), ["no setting: take a card with more memory, or a smaller model"]),
    ],
)
def test_the_least_change_that_fits_is_named(
    sizes: tuple[float, ...], ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [("lora", False), ("lora", True), ("qlora", False), ("qlora", True)]
    plan = plan_of(dict(zip(cases, sizes, strict=True)), monkeypatch)
    assert not plan.fits(RENTED["4090"])
    assert list(find_ways(plan, RENTED["4090"])) == ways


def test_cuda_and_what_lies_between_blocks_count_as_needed() -> None:
    assert needed_bytes(Estimate(Memory(GIB, GIB, GIB, GIB, GIB), 1.0, 1.0)) == pytest.approx((5 * 1.05 + 0.7) * GIB)


def test_a_speed_measured_on_such_a_card_replaces_the_assumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    card = RENTED["h100"]
    assumed = read_speed(card, "bfloat16", 7e9)
    assert assumed and assumed.operations == pytest.approx(0.3 * 989e12) and "assumed" in assumed.why
    figures = {"matrix_tflops": 700.0, "0.5B share of the matrix rate": 0.3, "7B share of the matrix rate": 0.6}
    report = {
        "machine": {"card": "NVIDIA H100 80GB HBM3"},
        "checks": [{"name": "throughput of training", "figures": figures}],
    }
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "results.json").write_text(json.dumps(report))
    for parameters, share in ((7e9, 0.6), (0.5e9, 0.3)):
        measured = read_speed(card, "bfloat16", parameters)
        assert measured and measured.operations == pytest.approx(share * 700e12) and "measured" in measured.why
    assert read_speed(RENTED["a100-80"], "bfloat16", 7e9).why.endswith("assumed")  # type: ignore[union-attr]
    assert read_speed(ACCELERATORS["NvidiaRtxPro6000"], "bfloat16", 7e9) is None


def test_a_blend_is_planned_by_its_members_and_a_run_without_models_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: dict[str, dict[str, Any]] = {"blend": {"members": ["first", "second"]}, "first": {}, "second": {}}
    monkeypatch.setattr(card_plans, "read_run_config", configs.__getitem__)
    monkeypatch.setattr(card_plans, "plan_trainings", lambda *_: [])
    with pytest.raises(ValueError, match="not trained: plan first, second by themselves"):
        plan_run("blend", "h100")
    monkeypatch.setattr(card_plans.records, "read_record", lambda folder: "complete")
    monkeypatch.setattr(card_plans, "describe_inference", lambda model, *_: [model.name, "infer"])
    models = {"first": [Model("reader", None, "causal")], "second": []}
    monkeypatch.setattr(card_plans, "list_models", lambda run, config: (models[run], []))
    assert plan_run("blend", "h100") == [["first: reader", "infer"]]
    card_plans.print_plan("second", "h100", None, None)
    assert "names no model folder that is here" in capsys.readouterr().out
