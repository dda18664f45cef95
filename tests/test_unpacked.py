"""Models whose layers cannot be packed are trained prompt by prompt, with the losses and gradients of prompts alone."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from kaggle_llm.engines.attention import takes_segments
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.heads import HeadSettings
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask
from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
from kaggle_llm.training.base_model import load_trainable
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads", "conv_kernel_dim")}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear attention in some layers": (
        "Qwen3Next",
        {**SIZES, **HEADS, **LINEAR, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2}
        | {"layer_types": ["linear_attention", "full_attention"], "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16, "num_experts_per_tok": 2},
    ),
    "states": ("Mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8}),
    "convolutions in some layers": (
        "Lfm2",
        {**{key: value for key, value in SIZES.items() if key != "head_dim"}, **HEADS}
        | {"layer_types": ["conv", "full_attention"]},
    ),
    "capped scores": ("Gemma2", {**SIZES, **HEADS, "sliding_window": 512, "attn_logit_softcapping": 0.01}),
    "short windows in some layers": (
        "Gemma3",
        {**SIZES, **HEADS, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
FULL = LoraSettings(method="full")
YES, NO = 266, 265


def save_model(kind: str, pico_llm: Path, folder: Path) -> Path:
    import torch
    import transformers

    name, changes = KINDS[kind]
    if name == "Mamba2":
        changes = changes | {"n_groups": 1, "expand": 2, "chunk_size": 8}
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = config_class(vocab_size=600, initializer_range=0.1, max_position_embeddings=512, **ids, **changes)
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).float().save_pretrained(folder)
    load_tokenizer(pico_llm).save_pretrained(folder)
    return folder


def draw(rng: random.Random, longest: int) -> list[int]:
    return rng.choices(range(6, 560), k=rng.randint(1, longest))


def make_groups() -> list[TokenGroup]:
    rng = random.Random(3)
    return [TokenGroup(draw(rng, 30), [draw(rng, 9) for _ in range(2)], (1.0, 0.0)) for _ in range(3)]


def make_texts() -> list[CompletionExample]:
    rng = random.Random(4)
    return [CompletionExample(tuple(draw(rng, 30)), tuple(draw(rng, 9))) for _ in range(3)]


def choose_alone(model: Any, groups: Sequence[TokenGroup]) -> Any:
    import torch

    total = torch.zeros(())
    for group in groups:
        ends = [model(torch.tensor([[*group.shared, *own]])).logits[0, -1].float() for own in group.candidates]
        total = total - torch.stack([end[YES] - end[NO] for end in ends]).log_softmax(0)[0]
    return total


def write_alone(model: Any, texts: Sequence[CompletionExample]) -> Any:
    import torch

    total = torch.zeros(())
    for text in texts:
        logprobs = model(torch.tensor([[*text.prompt, *text.completion]])).logits[0].float().log_softmax(-1)
        first = len(text.prompt) - 1
        total = total - sum(logprobs[first + i, token] for i, token in enumerate(text.completion))
    return total


TASKS = {
    "choice": (ChoiceTask(ChoiceSettings(), [[YES], [NO]]), make_groups, choose_alone),
    "writing": (GenerationTask(), make_texts, write_alone),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_prompts_alone(
    kind: str, task_name: str, pico_llm: Path, tmp_path: Path
) -> None:
    import torch

    base = save_model(kind, pico_llm, tmp_path)
    task, make_examples, compute_alone = TASKS[task_name]
    examples = make_examples()
    model = load_trainable(base, "causal", FULL, TrainingSettings(), 0, **task.config())
    assert not takes_segments(model)
    results = []
    for compute in (task.loss, compute_alone):
        model.zero_grad()
        loss = compute(model, examples)
        loss.backward()
        grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        results.append((loss.detach(), grads))
    (loss, grads), (expected, expected_grads) = results
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert grads.keys() == expected_grads.keys() and any(grad.abs().max() > 1e-3 for grad in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["capped scores", "linear attention in some layers"])
def test_a_head_is_trained_on_padded_rows_as_on_each_alone(kind: str, pico_llm: Path, tmp_path: Path) -> None:
    """What pads stands behind a row, where neither a state nor attention looks; the engine answers alike."""
    import torch

    base, rng = save_model(kind, pico_llm, tmp_path / "base"), random.Random(5)
    examples = [HeadExample(tuple(draw(rng, 30)), target) for target in [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)]]
    task = HeadTask(HeadSettings("classification", ["a", "b"]))
    model = load_trainable(base, "sequence", FULL, TrainingSettings(), 0, **task.config())
    alone = [model(torch.tensor([list(example.ids)])).logits[0].tolist() for example in examples]
    with torch.no_grad():
        padded = [row.tolist() for row in task.logits(model, examples)]
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    job = Job(base, tmp_path / "trained", FULL, TrainingSettings(batch=3, epochs=8, learning_rate=1e-2, warmup=0.0), 0)
    fine_tune(task, examples, job)
    log = [json.loads(line) for line in (tmp_path / "trained" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0] / 2
    engine = make_engine(job.folder, EngineSettings())
    rows = engine.logits([example.ids for example in examples])
    trained = AutoModelForSequenceClassification.from_pretrained(job.folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = [trained(torch.tensor([list(example.ids)])).logits[0].tolist() for example in examples]
    np.testing.assert_allclose(rows, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_a_class_for_heads_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    base = save_model("convolutions in some layers", pico_llm, tmp_path)
    with pytest.raises(ValueError, match=r"is a lfm2, for which transformers has no SequenceClassification: take anot"):
        load_trainable(base, "sequence", FULL, TrainingSettings(), 0, num_labels=2)


@pytest.mark.filterwarnings("ignore")
def test_scores_are_capped_wherever_a_model_computes(pico_llm: Path, tmp_path: Path) -> None:
    """torch's fused attention leaves caps out without a word: the trainer and the engine take the one that has them."""
    import torch

    base, prompt = save_model("capped scores", pico_llm, tmp_path), draw(random.Random(6), 30) * 4
    found = {}
    with torch.no_grad():
        for name in ("eager", "sdpa"):
            plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation=name).eval()
            found[name] = plain(torch.tensor([prompt])).logits[0, -1]
        task = TASKS["choice"][0]
        model = load_trainable(base, "causal", FULL, TrainingSettings(), 0, **task.config()).eval()
        found["trainer"] = model(torch.tensor([prompt])).logits[0, -1]
    (answer,) = make_engine(base, EngineSettings()).choices([prompt], [[YES], [NO]])
    torch.testing.assert_close(found["trainer"], found["eager"])
    expected = found["eager"].log_softmax(-1)[[YES, NO]]
    np.testing.assert_allclose(answer, expected, atol=1e-4)
    assert (found["sdpa"].log_softmax(-1)[[YES, NO]] - expected).abs().max() > 1e-2, "the caps matter here"


def test_a_model_that_can_be_packed_is(pico_llm: Path) -> None:
    task = GenerationTask()
    assert takes_segments(load_trainable(pico_llm, "causal", FULL, TrainingSettings(), 0, **task.config()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["capped scores", "states"])
def test_such_a_model_is_fine_tuned(
    kind: str, pico_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_model(kind, pico_llm, tmp_path / "base")
    training = TrainingSettings(batch=3, learning_rate=1e-3)
    fine_tune(GenerationTask(), make_texts(), Job(base, tmp_path / "trained", FULL, training, seed=0))
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    assert "each prompt is trained by itself" in capsys.readouterr().out


def test_examples_beyond_the_attention_window_are_trained_by_themselves(
    pico_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that is longer than the trial's prompts, but shorter than an example."""
    import transformers

    config = transformers.MistralConfig(
        vocab_size=600, max_position_embeddings=512, sliding_window=64, eos_token_id=2, bos_token_id=1, **SIZES, **HEADS
    )
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    load_tokenizer(pico_llm).save_pretrained(tmp_path / "base")
    long = CompletionExample(tuple(draw(random.Random(1), 30) * 30)[:90], (7, 8))
    job = Job(tmp_path / "base", tmp_path / "trained", FULL, TrainingSettings(batch=2), seed=0)
    fine_tune(GenerationTask(), [long, long], job)
    assert "exceed the attention window of 64 tokens" in capsys.readouterr().out
