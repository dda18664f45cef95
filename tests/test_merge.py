"""A merged folder is the base with its adapter, an ordinary model folder; foreign adapters are refused.

Adapters are made with PEFT alone here; those that training leaves are merged in the tests of its tasks.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.maker import make_engine
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


HEADS = {  # base, transformers' class, PEFT's task type, matrices with LoRA
    "bert-sequence": ("pico_encoder", "AutoModelForSequenceClassification", "SEQ_CLS", ["query", "value", "dense"]),
    "bert-token": ("pico_encoder", "AutoModelForTokenClassification", "TOKEN_CLS", ["query", "value", "dense"]),
    "llama-sequence": ("pico_llm", "AutoModelForSequenceClassification", "SEQ_CLS", ["q_proj", "down_proj"]),
}
FORMS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
ROWS = [list(range(6, 38)), [9, 8, 7], [40, 41, 42, 43]]


def make_adapter(base: Path, maker: str, task_type: str, targets: list[str], folder: Path, **form: bool) -> Any:
    """The model in training's last moment; `folder` has its adapter and config. B is not zero, the head is random."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    names = {0: "a", 1: "b", 2: "c"} if task_type in ("SEQ_CLS", "TOKEN_CLS") else {0: "x", 1: "y"}
    torch.manual_seed(1)
    model = getattr(transformers, maker).from_pretrained(base, dtype=torch.float32, id2label=names)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task_type, **form))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if "lora_magnitude" in name:
            weight.data *= 1.1
    model.get_base_model().config.save_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS)
def test_a_merged_head_gives_the_engine_the_logits_of_the_trained_model(
    head: str, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import torch

    name, *rest = HEADS[head]
    base = request.getfixturevalue(name)
    model = make_adapter(base, *rest, tmp_path / "adapter", **FORMS[form])
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    engine = make_engine(tmp_path / "merged", EngineSettings())
    found = engine.logits(ROWS)
    engine.close()
    for row, logits_of_row in zip(ROWS, found, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0]
            with model.disable_adapter():
                without = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).logits[0]
        scale = expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(logits_of_row), expected, atol=1e-5 * max(scale, 1), rtol=0)
        assert (expected - without).abs().max() > 0.01
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in (tmp_path / "merged").iterdir()}


def test_a_head_without_its_config_is_refused(pico_encoder: Path, tmp_path: Path) -> None:
    _, *rest = HEADS["bert-sequence"]
    make_adapter(pico_encoder, *rest, tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has a head but no config\.json"):
        merge_adapter(pico_encoder, tmp_path / "adapter", tmp_path / "merged")


def test_weights_that_neither_base_nor_adapter_has_are_refused(pico_encoder: Path, tmp_path: Path) -> None:
    """The encoder has no MLM head: training drew one, and the merge would draw another."""
    make_adapter(pico_encoder, "AutoModelForMaskedLM", "FEATURE_EXTRACTION", ["query"], tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has the weights \['cls.predictions.transform.dense.weight'\]") as refused:
        merge_adapter(pico_encoder, tmp_path / "adapter", tmp_path / "merged")
    assert str(pico_encoder) in str(refused.value) and str(tmp_path / "adapter") in str(refused.value)


def test_a_masked_model_is_merged(pico_encoder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

    torch.manual_seed(0)
    BertForMaskedLM(AutoConfig.from_pretrained(pico_encoder)).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(pico_encoder).save_pretrained(tmp_path / "base")
    rest = ("AutoModelForMaskedLM", "FEATURE_EXTRACTION", ["query", "dense"])
    model = make_adapter(tmp_path / "base", *rest, tmp_path / "adapter")
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_an_adapter_of_another_kind_is_refused(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_2_SEQ_LM"}))
    with pytest.raises(ValueError, match="task_type 'SEQ_2_SEQ_LM'"):
        merge_adapter(pico_llm, foreign, tmp_path / "merged")


def test_a_whole_model_is_linked_without_what_training_wrote_beside_it(pico_llm: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(pico_llm, tmp_path / "whole")
    for name in ("log.jsonl", "record.json"):
        (whole / name).write_text("{}")
    merge_adapter(pico_llm, whole, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in pico_llm.iterdir()}
    assert all((tmp_path / "merged" / name).read_bytes() == (pico_llm / name).read_bytes() for name in names)
    assert (tmp_path / "merged" / "model.safetensors").samefile(whole / "model.safetensors")


def test_a_folder_that_is_neither_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither an adapter .* nor a model"):
        merge_adapter(pico_llm, tmp_path / "empty", tmp_path / "merged")
