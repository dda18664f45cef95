"""The engine on transformers gives what the model gives for every prompt alone."""

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine

LABELS = [[266], [265], [300]]
TEXTS = [
    "Swaps numerator and denominator",
    "",
    "Is 0.75 the same as three quarters? The student says no, for 75 is more than 3. " * 2,
    "Round 4347 to the nearest hundred.",
    "No",
    "Adds the sides instead of multiplying, so the area of a rectangle is 7.",
]


def tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(6, 567), k=length)


def prompts_of(case: str) -> list[Prompt]:
    if case == "unlike":
        return [tokens(seed, length) for seed, length in enumerate([5, 1, 60, 33, 2, 60, 17])]
    if case == "rows":
        return [[*tokens(row, 40 + 9 * row), *tokens(10 + at, 1 + 7 * at)] for row in range(3) for at in range(4)]
    if case == "identical":
        return [tokens(1, 30)] * 5
    assert case == "nested"
    return [tokens(1, length) for length in (64, 20, 33, 1024, 63)]


def engine_of(folder: Path, **settings: Any) -> TransformersEngine:
    return TransformersEngine(folder, EngineSettings(**settings))


def reference(
    folder: Path, prompts: Sequence[Prompt], labels: Sequence[Prompt], dtype: str = "float32", **options: Any
) -> np.ndarray:
    """Every prompt alone through the model, log-softmax over the vocabulary at its last position."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options).eval()
    with torch.no_grad():
        last = torch.stack([model(torch.tensor([list(prompt)])).logits[0, -1] for prompt in prompts])
    return last.double().log_softmax(-1)[:, [label[0] for label in labels]].numpy()


@pytest.fixture(scope="module")
def engine(pico_llm: Path) -> TransformersEngine:
    return engine_of(pico_llm)


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
@pytest.mark.parametrize("case", ["unlike", "rows", "identical", "nested"])
def test_choices_are_those_of_every_prompt_alone(pico_llm: Path, case: str, batch_tokens: int) -> None:
    prompts = prompts_of(case)
    found = engine_of(pico_llm, batch_tokens=batch_tokens).choices(prompts, LABELS)
    np.testing.assert_allclose(found, reference(pico_llm, prompts, LABELS), atol=1e-5, rtol=0)
    assert found.std() > 0.1  # else agreement would say little


def test_choices_are_exact_for_a_window_of_attention_shorter_than_the_prompts(pico_llm: Path, tmp_path: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    sizes = json.loads((pico_llm / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = MistralConfig(
        **{name: sizes[name] for name in names}, num_hidden_layers=2, sliding_window=16, initializer_range=0.2
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    load_tokenizer(pico_llm).save_pretrained(tmp_path)
    found = engine_of(tmp_path).choices(prompts_of("rows"), LABELS)
    np.testing.assert_allclose(found, reference(tmp_path, prompts_of("rows"), LABELS), atol=1e-5, rtol=0)


def test_choices_keep_the_order_given(engine: TransformersEngine) -> None:
    prompts = [*prompts_of("rows"), *prompts_of("unlike")]
    order = random.Random(0).sample(range(len(prompts)), len(prompts))
    mixed = engine.choices([prompts[i] for i in order], LABELS)
    np.testing.assert_allclose(mixed, engine.choices(prompts, LABELS)[order], atol=1e-5, rtol=0)


def test_probabilities_of_the_whole_vocabulary_sum_to_one(engine: TransformersEngine, pico_llm: Path) -> None:
    size = len(load_tokenizer(pico_llm))
    found = engine.choices(prompts_of("rows"), [[token] for token in range(size)])
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)


def test_bfloat16_is_near_the_model_in_bfloat16(pico_llm: Path) -> None:
    prompts = prompts_of("rows")
    found = engine_of(pico_llm, dtype="bfloat16").choices(prompts, LABELS)
    expected = reference(pico_llm, prompts, LABELS, "bfloat16")
    np.testing.assert_allclose(found, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_a_label_of_several_tokens_is_scored_by_all_of_them(pico_llm: Path, batch_tokens: int) -> None:
    prompts, labels = prompts_of("rows"), [[266], [266, 265], [7, 8, 9], [7, 8, 10]]
    found = engine_of(pico_llm, batch_tokens=batch_tokens).choices(prompts, labels)
    for column, label in enumerate(labels):
        steps = [
            reference(pico_llm, [[*prompt, *label[:at]] for prompt in prompts], [[token]])[:, 0]
            for at, token in enumerate(label)
        ]
        np.testing.assert_allclose(found[:, column], sum(steps), atol=3e-5, rtol=0)


def test_a_label_without_a_token_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(ValueError, match=re.escape("labels [[266], []]: one has no token")):
        engine.choices([[7]], [[266], []])


def test_a_prompt_is_too_long_where_a_label_of_several_tokens_does_not_fit_behind_it(
    engine: TransformersEngine,
) -> None:
    assert engine.choices([tokens(0, 1022)], [[7, 8, 9]]).shape == (1, 1)
    with pytest.raises(ValueError, match=r"prompt 0 has 1023 tokens, .* takes 1 to 1022"):
        engine.choices([tokens(0, 1023)], [[7, 8, 9]])


OTHER_KINDS = {  # transformers' name, its settings, whether its attention can share beginnings
    "learned-positions": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}, True),
    "capped-scores": ("Gemma2", {"head_dim": 16, "num_hidden_layers": 2, "sliding_window": 512}, False),
    "windows-in-some-layers": ("Qwen3", {"head_dim": 16, "num_hidden_layers": 2, "use_sliding_window": False}, True),
    "alibi": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, False),
    "state-space": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_choices_are_exact_for_other_kinds_of_attention(kind: str, pico_llm: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    name, settings, shares = OTHER_KINDS[kind]
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    if name in ("Gemma2", "Qwen3"):
        settings = {**sizes, **settings}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=600, initializer_range=0.2, max_position_embeddings=512, **settings
    )
    getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config).save_pretrained(
        tmp_path
    )
    load_tokenizer(pico_llm).save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    found = engine.choices(prompts_of("rows"), LABELS)
    options = {"attn_implementation": "eager"} if name == "Gemma2" else {}  # torch's fused attention has no caps
    np.testing.assert_allclose(found, reference(tmp_path, prompts_of("rows"), LABELS, **options), atol=3e-5, rtol=0)
    assert engine._can_share == shares


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_that_is_empty_or_too_long_is_refused_by_index(engine: TransformersEngine, length: int) -> None:
    with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens, .* takes 1 to 1024"):
        engine.choices([[7], tokens(0, length), [8]], LABELS)
    with pytest.raises(ValueError, match=f"prompt 2 has {length} tokens"):
        engine.generate([[7], [8], tokens(0, length)], Sampling(max_tokens=1))


def test_scores_that_are_not_finite_are_refused_with_folder_and_count(broken_llm: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{broken_llm} gave 6 non-finite of 6 scores")):
        engine_of(broken_llm).choices([[7, 8], [9]], LABELS)


def test_greedy_completions_are_those_of_transformers(pico_llm: Path, engine: TransformersEngine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(pico_llm).eval(), load_tokenizer(pico_llm)
    prompts = prompts_of("unlike")
    for prompt, (found,) in zip(prompts, engine.generate(prompts, Sampling(max_tokens=8)), strict=True):
        (whole,) = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)
        assert found.ids == whole[len(prompt) :].tolist()
        assert found.text == tokenizer.decode(found.ids, skip_special_tokens=True)


def test_greedy_completions_are_n_alike(engine: TransformersEngine) -> None:
    (once,) = engine.generate([[7, 8]], Sampling(max_tokens=4))
    assert engine.generate([[7, 8]], Sampling(max_tokens=4, n=3)) == [once * 3]


def test_samples_are_n_and_the_same_for_a_seed_only(engine: TransformersEngine) -> None:
    sampling, other = (Sampling(max_tokens=6, temperature=1.0, n=3, seed=seed) for seed in (1, 2))
    first, again, second = (engine.generate([[7, 8], [9]], how) for how in (sampling, sampling, other))
    assert [len(samples) for samples in first] == [3, 3]
    assert len({tuple(sample.ids) for samples in first for sample in samples}) > 1
    assert first == again != second


def test_a_sample_that_ends_early_carries_no_padding(engine: TransformersEngine) -> None:
    (samples,) = engine.generate([[7, 8]], Sampling(max_tokens=300, temperature=1.0, n=12))
    early = [sample.ids for sample in samples if 2 in sample.ids]
    assert early  # 2 is the end of text
    assert all(ids.index(2) == len(ids) - 1 for ids in early)


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_embeddings_are_those_of_sentence_transformers(pico_encoder: Path, batch_tokens: int) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = load_tokenizer(pico_encoder)(TEXTS)["input_ids"]
    found = engine_of(pico_encoder, batch_tokens=batch_tokens).embed(prompts)
    expected = SentenceTransformer(str(pico_encoder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(found[:, None] - found[None]).max(-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 0.01


def test_embeddings_have_unit_length_where_the_model_does_not_normalise(pico_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(pico_encoder, tmp_path / "unnormalised")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    (folder / "modules.json").write_text(json.dumps(modules[:2]), encoding="utf-8")
    bare = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.abs(np.linalg.norm(bare, axis=1) - 1).min() > 0.01
    found = engine_of(folder).embed(load_tokenizer(folder)(TEXTS)["input_ids"])
    np.testing.assert_allclose(found, bare / np.linalg.norm(bare, axis=1, keepdims=True), atol=1e-5)


def test_no_prompts_have_no_answers(engine: TransformersEngine, pico_encoder: Path) -> None:
    assert engine.choices([], LABELS).shape == (0, 3)
    assert engine.generate([], Sampling(max_tokens=3)) == []
    assert engine_of(pico_encoder).embed([]).shape == (0, 32)


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_logits_of_a_head_are_those_of_every_prompt_alone(pico_head: Path, batch_tokens: int) -> None:
    import torch
    import transformers

    (name,) = transformers.AutoConfig.from_pretrained(pico_head).architectures
    model = getattr(transformers, name).from_pretrained(pico_head).eval()
    prompts = [tokens(seed, length) for seed, length in enumerate([5, 70, 1, 33, 33])]
    prompts = [[token % 332 for token in prompt] for prompt in prompts]
    found = engine_of(pico_head, batch_tokens=batch_tokens).logits(prompts)
    for prompt, row in zip(prompts, found, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([prompt])).logits[0].numpy()
        assert row.shape == ((len(prompt), 4) if name == "BertForTokenClassification" else (3,))
        np.testing.assert_allclose(row, alone, atol=1e-5, rtol=0)


def test_logits_of_a_model_without_head_are_refused(engine: TransformersEngine, pico_encoder: Path) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM: logits"):
        engine.logits([[7]])
    with pytest.raises(ValueError, match="BertModel: logits"):
        engine_of(pico_encoder).logits([[7]])


def test_a_closed_engine_holds_no_model_and_loads_it_again(pico_llm: Path) -> None:
    import torch

    engine, prompts = engine_of(pico_llm), prompts_of("rows")
    before = engine.choices(prompts, LABELS)
    assert any(isinstance(value, torch.nn.Module) for value in vars(engine).values())
    engine.close()
    assert not any(isinstance(value, torch.nn.Module) for value in vars(engine).values())
    np.testing.assert_array_equal(engine.choices(prompts, LABELS), before)
    engine.close()
    engine.close()


@pytest.mark.parametrize(
    ("base", "config", "expected"),
    [
        ("pico_llm", None, True),
        ("pico_encoder", None, False),
        ("pico_llm", {"task_type": "CAUSAL_LM"}, True),
        ("pico_llm", {}, True),
        ("pico_llm", {"task_type": "SEQ_CLS"}, False),
        ("pico_encoder", {}, False),
    ],
)
def test_vllm_serves_what_generates_text_only(
    base: str, config: dict[str, str] | None, expected: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """config: of an adapter on the base; None: the base alone."""
    from kaggle_llm.engines.maker import is_language_model

    folder = request.getfixturevalue(base)
    if config is None:
        assert is_language_model(folder) is expected
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert is_language_model(tmp_path, folder) is expected


def test_a_model_with_a_head_generates_no_text(pico_head: Path) -> None:
    from kaggle_llm.engines.maker import is_language_model

    assert not is_language_model(pico_head)
