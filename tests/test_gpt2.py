"""exp000's GPT-2, written out, is transformers' GPT-2."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

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
