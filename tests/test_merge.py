"""A merged folder is the base with its adapter, an ordinary model folder; foreign adapters are refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.prompts import load_tokenizer
from kaggle_llm.weights.merge import merge_adapter

if TYPE_CHECKING:
    import torch

MESSAGES = [{"role": "system", "content": "Answer Yes or No."}, {"role": "user", "content": "Is 2/4 = 1/2?"}]


def logits(folder: Path, adapter: Path | None = None) -> "torch.Tensor":
    """[tokens, vocabulary] of a fixed text, by the model of a folder with an adapter attached or none."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.arange(6, 38)[None]).logits[0]


@pytest.fixture(scope="module")
def adapter(pico_llm: Path, with_lora: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge") / "adapter"
    with_lora(pico_llm).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(pico_llm: Path, adapter: Path) -> Path:
    folder = adapter.with_name("merged")
    merge_adapter(pico_llm, adapter, folder)
    return folder


def test_merged_weights_give_the_logits_of_base_and_adapter(pico_llm: Path, adapter: Path, merged: Path) -> None:
    import torch

    found, expected = logits(merged), logits(pico_llm, adapter)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert (found - logits(pico_llm)).abs().max() > 0.1


def test_a_merged_folder_is_an_ordinary_model_folder(pico_llm: Path, merged: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    names = {path.name for path in merged.iterdir()}
    assert {path.name for path in pico_llm.iterdir()} <= names
    assert not [name for name in names if "adapter" in name]
    first, second = (AutoConfig.from_pretrained(folder).to_dict() for folder in (pico_llm, merged))
    assert first | {"_name_or_path": ""} == second | {"_name_or_path": ""}
    first, second = (GenerationConfig.from_pretrained(folder).to_dict() for folder in (pico_llm, merged))
    assert first == second
    assert second["eos_token_id"] == 2


def test_a_merged_folder_has_the_tokenizer_and_chat_template_of_the_base(pico_llm: Path, merged: Path) -> None:
    first, second = load_tokenizer(pico_llm), load_tokenizer(merged)
    assert second.get_vocab() == first.get_vocab()
    texts = [tokenizer.apply_chat_template(MESSAGES, tokenize=False) for tokenizer in (first, second)]
    assert texts[0] == texts[1]
    assert "Is 2/4 = 1/2?</s>" in texts[1]
    assert second(texts[1])["input_ids"] == first(texts[0])["input_ids"]
    assert (second.pad_token_id, second.eos_token_id) == (first.pad_token_id, first.eos_token_id)


def test_merging_leaves_the_base_as_it_was(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in pico_llm.iterdir()}
    merge_adapter(pico_llm, adapter, tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in pico_llm.iterdir()} == before


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}], ids=str)
def test_an_adapter_of_another_base_is_refused_with_both_named(
    pico_llm: Path,
    make_llm: Callable[..., Path],
    with_lora: Callable[[Path], Any],
    tmp_path: Path,
    changes: dict[str, int],
) -> None:
    foreign = tmp_path / "foreign"
    with_lora(make_llm(tmp_path / "other-base", **changes)).save_pretrained(foreign)
    with pytest.raises(ValueError, match=re.escape(str(foreign))) as refused:
        merge_adapter(pico_llm, foreign, tmp_path / "merged")
    assert str(pico_llm) in str(refused.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_whose_tensors_find_no_place_is_refused(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    """As after training the text half of a larger model: as many matrices, other names around them."""
    from safetensors.torch import load_file, save_file

    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    weights = load_file(foreign / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "model.language_model.layers"): weight for name, weight in weights.items()}
    assert renamed.keys().isdisjoint(weights)
    save_file(renamed, foreign / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(str(foreign))) as refused:
        merge_adapter(pico_llm, foreign, tmp_path / "merged")
    assert str(pico_llm) in str(refused.value)
