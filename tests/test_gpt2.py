"""exp000's GPT-2, written out, is transformers' GPT-2."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pico import train_bpe
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.weights.merge import MergeSettings, merge_adapter

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gpt2() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpt2_model", ROOT / "exp" / "exp000_gpt2" / "model.py")
    assert spec and spec.loader
    module = sys.modules["gpt2_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"vocab_size": 101, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**size, **none, bos_token_id=0, eos_token_id=None)).eval()


@pytest.fixture(scope="module")
def model(gpt2: ModuleType, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gpt2")
    reference.save_pretrained(folder)
    return gpt2.load_gpt2(folder)


def test_logits_loss_and_gradients_are_those_of_transformers(gpt2: ModuleType, model: Any, reference: Any) -> None:
    ids = torch.randint(0, 101, (2, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :5] = gpt2.IGNORED
    expected = reference(ids, labels=labels)
    loss = model.loss(ids, labels)
    assert (model(ids) - expected.logits).abs().max() < 1e-4 and (loss - expected.loss).abs() < 1e-4
    loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() < 1e-4, name


def test_greedy_tokens_are_those_of_transformers_with_and_without_a_cache(model: Any, reference: Any) -> None:
    ids = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = reference.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, 30), expected)
    assert torch.equal(model.generate(ids, 30, cached=False), expected)


def test_a_prefix_in_the_cache_changes_no_logit(model: Any) -> None:
    ids = torch.randint(0, 101, (2, 30), generator=torch.Generator().manual_seed(2))
    for split in (1, 13, 29):
        cache: list[Any] = []
        parts = [model(ids[:, :split], cache), model(ids[:, split:], cache)]
        assert (torch.cat(parts, dim=1) - model(ids)).abs().max() < 1e-4
        assert cache[0][0].shape == (2, 4, 30, 8)


def test_temperature_and_top_k_draw_what_they_should(gpt2: ModuleType) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(20_000, 1)
    drawn = gpt2.choose_token(logits, 0.5, 2, torch.Generator().manual_seed(0)).flatten()
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = torch.tensor([4.0, 6.0]).softmax(0)  # logits / temperature of the two likeliest
    assert share[:2].sum() == 0 and (share[2:] - expected).abs().max() < 0.01
    assert set(gpt2.choose_token(logits, 0.0, None, None).flatten().tolist()) == {3}


def test_what_it_saves_transformers_loads(gpt2: ModuleType, model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    gpt2.save_gpt2(model, tmp_path)
    ids = torch.arange(10)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (loaded(ids).logits - model(ids)).abs().max() < 1e-4
    again = gpt2.load_gpt2(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_too_long_a_text_and_heads_that_do_not_fit_are_refused(gpt2: ModuleType, model: Any) -> None:
    with pytest.raises(ValueError, match="65 tokens, but n_positions = 64"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="no multiple of n_head"):
        gpt2.GPT2Settings(n_embd=30, n_head=4)


@pytest.fixture(scope="module")
def folder(gpt2: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of ours with a tokenizer."""
    tokenizer = train_bpe()
    torch.manual_seed(3)
    end = tokenizer.eos_token_id
    model = gpt2.GPT2(gpt2.GPT2Settings(len(tokenizer), 256, 32, 2, 4, bos_token_id=end, eos_token_id=end))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("models") / "gpt2"
    gpt2.save_gpt2(model, path)
    tokenizer.save_pretrained(path)
    return path


def test_prompts_that_share_a_prefix_are_scored_as_alone(gpt2: ModuleType, folder: Path) -> None:
    """The engine's tree of shared prefixes against model.py, one prompt at a time."""
    shared = torch.randint(6, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[*shared, *range(20 + n, 28 + 2 * n)] for n in range(6)] + [[9, 8, 7], shared[:25]]
    labels = [[11], [12, 13], [14, 15, 16]]
    engine = make_engine(folder, EngineSettings())
    found = engine.choices(prompts, labels)
    engine.close()
    model = gpt2.load_gpt2(folder).eval()
    for prompt, row in zip(prompts, found, strict=True):
        for label, score in zip(labels, row, strict=True):
            logs = model(torch.tensor([[*prompt, *label]])).detach().log_softmax(2)[0]
            expected = sum(float(logs[len(prompt) - 1 + place, token]) for place, token in enumerate(label))
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_merged_adapter_is_the_literal_sum_of_its_factors(gpt2: ModuleType, folder: Path, tmp_path: Path) -> None:
    """W + alpha/r · (B A)ᵀ, GPT-2's matrices being [in, out], in model.py; and what PEFT says."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=4, lora_alpha=12, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    peft.save_pretrained(tmp_path / "adapter")
    literal, factors = gpt2.load_gpt2(folder), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, b in factors.items():
        if "lora_B" in name:
            a = factors[name.replace("lora_B", "lora_A")]
            weight = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight") + ".weight"
            literal.get_parameter(weight).data += 12 / 4 * (b @ a).T
    (tmp_path / "merged").mkdir()
    merge_adapter(folder, tmp_path / "adapter", tmp_path / "merged", MergeSettings())
    ids = torch.randint(6, 300, (1, 20), generator=torch.Generator().manual_seed(4))
    expected = literal(ids)
    assert (gpt2.load_gpt2(tmp_path / "merged")(ids) - expected).abs().max() < 1e-4
    assert (peft.eval()(ids).logits - expected).abs().max() < 1e-4
    assert (gpt2.load_gpt2(folder)(ids) - expected).abs().max() > 0.1, "the adapter does something"


def test_padding_stands_behind_and_only_answers_have_a_loss(gpt2: ModuleType) -> None:
    ids, labels = gpt2.pad_examples([([1, 2], [3]), ([4], [5, 6, 7])])
    none = gpt2.IGNORED
    assert ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert labels.tolist() == [[none, none, 3, none], [none, 5, 6, 7]]


@pytest.mark.timeout(60)
def test_it_learns_to_say_what_it_was_taught(gpt2: ModuleType) -> None:
    """Twenty prompts, each with its own answer, in some passes by heart."""
    torch.manual_seed(0)
    model = gpt2.GPT2(gpt2.GPT2Settings(64, 16, 32, 2, 4))
    taught = [([n, 40 + n % 5], [20 + (7 * n) % 20, 63]) for n in range(20)]
    gpt2.fit(model, taught, epochs=60, batch=5, learning_rate=5e-3, seed=0)
    said = [model.generate(torch.tensor([prompt]), 2)[0, 2:].tolist() for prompt, _ in taught]
    assert said == [answer for _, answer in taught]


@pytest.mark.slow
def test_it_is_trained_again_where_its_own_files_do_something_else(bare: Workspace, tmp_path: Path) -> None:
    """model.py, which learn.py imports; not for a comment, and not for predict.py, which asks what was learned."""
    workspace = copy_workspace(bare, tmp_path)
    model, predict = (workspace.root / "exp" / "exp000_gpt2" / name for name in ("model.py", "predict.py"))
    assert "fold0/gpt2 …" in succeed(workspace.train("exp000_gpt2", "--smoke"))
    made = (workspace.output / "exp000_gpt2--smoke" / "fold0" / "gpt2").stat().st_ino
    model.write_text(model.read_text().replace("\nclass ", "\n# The model.\nclass ", 1))
    predict.write_text(predict.read_text().replace("loaded.index.search(", "loaded.index.search(*(), "))
    assert "fold0/gpt2 is complete, reused" in succeed(workspace.train("exp000_gpt2", "--smoke"))
    assert (workspace.output / "exp000_gpt2--smoke" / "fold0" / "gpt2").stat().st_ino == made
    text = model.read_text()
    assert text.count("betas=(0.9, 0.95)") == 1
    model.write_text(text.replace("betas=(0.9, 0.95)", "betas=(0.9, 0.96)"))
    assert "fold0/gpt2 is made again: code: " in succeed(workspace.train("exp000_gpt2", "--smoke"))
