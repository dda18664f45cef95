"""A merged folder is the base with its adapter, an ordinary model folder; foreign adapters are refused.

Adapters are made with PEFT alone here; those that training leaves are merged in the tests of its tasks.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.base import records
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.vllm_engine import check_vllm_head
from kaggle_llm.training.trainer import gather_weights
from kaggle_llm.weights.checkpoint import Checkpoint
from kaggle_llm.weights.merge import MergeSettings, merge_adapter

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


def make_adapter(
    base: Path,
    maker: str,
    task_type: str,
    targets: list[str],
    folder: Path,
    dtype: str = "float32",
    loading: dict[str, Any] | None = None,
    **form: Any,
) -> Any:
    """The model in training's last moment; `folder` has its adapter and config. B is not zero, the head is random."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    names = {0: "a", 1: "b", 2: "c"} if task_type in ("SEQ_CLS", "TOKEN_CLS") else {0: "x", 1: "y"}
    torch.manual_seed(1)
    loading = {"dtype": getattr(torch, dtype), "id2label": names, **(loading or {})}
    model = getattr(transformers, maker).from_pretrained(base, **loading)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task_type, **form))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if "lora_magnitude" in name:
            weight.data *= 1.1
        if "modules_to_save" in name:
            weight.data += 0.1 * torch.randn_like(weight)
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
    assert names == {path.name for path in pico_llm.iterdir()} | {"weights.json"}
    assert all(
        (tmp_path / "merged" / name).read_bytes() == (pico_llm / name).read_bytes() for name in names - {"weights.json"}
    )
    assert (tmp_path / "merged" / "model.safetensors").samefile(whole / "model.safetensors")


def test_a_folder_that_is_neither_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither an adapter .* nor a model"):
        merge_adapter(pico_llm, tmp_path / "empty", tmp_path / "merged")


# every kind of adapter --------------------------------------------------------------------------------------

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = {
    "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2},
    "alpha_pattern": {"v_proj": 32, "layers.0.mlp.up_proj": 1},
}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {  # is the base tied, PEFT's options
    "lora": (True, {}),
    "rslora": (True, {"use_rslora": True}),
    "dora": (True, {"use_dora": True}),
    "patterns": (True, PATTERNS),
    "patterns-rslora": (True, {**PATTERNS, "use_rslora": True}),
    "untied": (False, {}),
    "untied-head": (False, {"modules_to_save": ["lm_head"]}),
    "untied-lora-on-both": (False, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tied-head": (True, {"modules_to_save": ["lm_head"]}),
    "tied-embeddings": (True, {"modules_to_save": ["embed_tokens"]}),
    "tied-both": (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied-head-kept-tied": (True, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "tied-embeddings-kept-tied": (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied-lora-on-embeddings": (True, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied-lora-on-head": (True, {"target_modules": ["lm_head", "q_proj"]}),
    "tied-lora-on-embeddings-kept-tied": (
        True,
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    ),
}


@pytest.fixture(scope="module")
def untied(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("merge") / "untied"
    torch.manual_seed(3)
    LlamaForCausalLM(AutoConfig.from_pretrained(pico_llm, tie_word_embeddings=False)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico_llm).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_head(untied: Path) -> Path:
    """A checkpoint with two matrices whose config ties them, as some published merges are."""
    folder = Path(shutil.copytree(untied, untied.with_name("own-head")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_the_config_ties_but_the_checkpoint_holds_is_kept(own_head: Path, tmp_path: Path) -> None:
    import torch

    model = make_causal(own_head, tmp_path / "adapter")
    merge_adapter(own_head, tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        expected = model(torch.arange(6, 38)[None]).logits[0]
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("base", ["own_head", "untied", "pico_llm"])
def test_weights_gathered_from_several_processes_have_the_head_unless_it_is_tied(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Method full under FSDP, whose part each process holds; here one process holds all."""
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(base)
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = SimpleNamespace(model=model, is_fsdp_enabled=True, is_deepspeed_enabled=False)
    gather_weights(trainer).save_pretrained(tmp_path)
    assert set(Checkpoint(tmp_path).tensors) == set(Checkpoint(folder).tensors)


def test_vllm_is_not_given_a_head_that_it_would_drop(own_head: Path, untied: Path, pico_llm: Path) -> None:
    with pytest.raises(ValueError, match=r"lm_head.*tie_word_embeddings to false"):
        check_vllm_head(own_head)
    check_vllm_head(untied)
    check_vllm_head(pico_llm)


def make_causal(base: Path, folder: Path, dtype: str = "float32", **form: Any) -> Any:
    """The trained model; `folder` has its adapter."""
    form = {"target_modules": ALL, **form}
    return make_adapter(base, "AutoModelForCausalLM", "CAUSAL_LM", form.pop("target_modules"), folder, dtype, **form)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_merged(kind: str, pico_llm: Path, untied: Path, tmp_path: Path) -> None:
    import torch

    is_tied, form = KINDS[kind]
    base = pico_llm if is_tied else untied
    model = make_causal(base, tmp_path / "adapter", **form)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        expected = model(torch.arange(6, 38)[None]).logits[0]
    found = logits(tmp_path / "merged")
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert (found - logits(base)).abs().max() > 0.1
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    changes_one = kind.startswith("tied") and not form.get("ensure_weight_tying")
    assert config["tie_word_embeddings"] == (is_tied and not changes_one)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *[(kind, "bfloat16") for kind in ("lora", "rslora", "patterns", "dora", "untied-head", "untied-lora-on-both")],
        *[("lora", "float32"), ("lora", "float16"), ("untied-lora-on-both", "float32"), ("dora", "float16")],
    ],
)
def test_merged_tensors_are_those_of_peft_to_the_last_bit(kind: str, dtype: str, untied: Path, tmp_path: Path) -> None:
    """Apart from DoRA, whose norms PEFT multiplies in another order, and from LoRA on embeddings in half precision, for
    which PEFT rounds what is added before it adds it: there ours is the sum rounded once.
    """
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base, wanted = tmp_path / "base", getattr(torch, dtype)
    AutoModelForCausalLM.from_pretrained(untied, dtype=wanted).save_pretrained(base)
    make_causal(base, tmp_path / "adapter", **KINDS[kind][1])
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=wanted), tmp_path / "adapter")
    embedding = model.base_model.model.model.embed_tokens
    exact = {}
    if kind == "untied-lora-on-both":
        total = embedding.base_layer.weight.float() + embedding.get_delta_weight("default")
        exact = {"model.embed_tokens.weight": total.to(wanted)}
    expected = {**model.merge_and_unload().state_dict(), **exact}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted
        if kind == "dora":
            torch.testing.assert_close(tensor, expected[name].to(wanted))
        else:
            torch.testing.assert_close(tensor, expected[name].to(wanted), rtol=0, atol=0, msg=name)


def make_other(name: str, folder: Path, tokenizer: Path) -> None:
    """Models whose checkpoints are not named as their modules are, or which store matrices the other way round."""
    import torch
    import transformers

    torch.manual_seed(5)
    small = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "GPT2LMHeadModel":
        config = transformers.GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    elif name == "GPTNeoXForCausalLM":
        config = transformers.GPTNeoXConfig(**small, intermediate_size=64, initializer_range=0.2)
    else:
        config = transformers.Gemma3TextConfig(
            **small, intermediate_size=64, num_key_value_heads=2, head_dim=8, initializer_range=0.2
        )
    getattr(transformers, name)(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


OTHERS = {
    "GPT2LMHeadModel": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "GPTNeoXForCausalLM": {"target_modules": ["query_key_value", "dense", "embed_out", "lm_head"]},
    "Gemma3ForCausalLM": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_merged(name: str, pico_llm: Path, tmp_path: Path) -> None:
    import torch

    make_other(name, tmp_path / "base", pico_llm)
    model = make_causal(tmp_path / "base", tmp_path / "adapter", **OTHERS[name])
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        expected = model(torch.arange(6, 38)[None]).logits[0]
    found = logits(tmp_path / "merged")
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert (found - logits(tmp_path / "base")).abs().max() > 0.1


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> set[str]:
    """Names of the tensors of a checkpoint afterwards."""
    from safetensors.torch import load_file, save_file

    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return set(tensors)


OLD_NAMES: dict[str, Callable[[str], str]] = {
    "GPT2LMHeadModel": lambda name: name.removeprefix("transformer."),  # as on the hub
    "GPTNeoXForCausalLM": lambda name: name.replace("lm_head.", "embed_out."),  # as on the hub
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OLD_NAMES)
def test_a_base_with_the_names_of_the_hub_is_merged(name: str, pico_llm: Path, tmp_path: Path) -> None:
    import torch

    make_other(name, tmp_path / "base", pico_llm)
    stored = rename_tensors(tmp_path / "base", OLD_NAMES[name])
    model = make_causal(tmp_path / "base", tmp_path / "adapter", **OTHERS[name])
    assert not stored <= {key.removeprefix("base_model.model.") for key in model.state_dict()}
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        expected = model(torch.arange(6, 38)[None]).logits[0]
    found = logits(tmp_path / "merged")
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("into", ["dequantised", "original"])
def test_a_qlora_adapter_is_merged_into_what_the_config_says(into: Any, pico_llm: Path, tmp_path: Path) -> None:
    """Dequantised, the merged model is the one that was trained: the base in NF4 with the adapter beside it."""
    import torch
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    maker = ("AutoModelForCausalLM", "CAUSAL_LM", ALL, tmp_path / "adapter", "float32")
    model = make_adapter(pico_llm, *maker, loading={"quantization_config": nf4})
    for module in model.modules():  # bitsandbytes' own kernel for the CPU computes in bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    about = {"stage": "adapter", "method": "qlora", "dtype": "float32"}
    (tmp_path / "adapter" / "weights.json").write_text(json.dumps(about))
    merge_adapter(pico_llm, tmp_path / "adapter", tmp_path / "merged", MergeSettings(into=into))
    with torch.no_grad():
        trained = model(torch.arange(6, 38)[None]).logits[0]
    expected = trained if into == "dequantised" else logits(pico_llm, tmp_path / "adapter")
    found, scale = logits(tmp_path / "merged"), expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=0)
    assert json.loads((tmp_path / "merged" / "weights.json").read_text())["into"] == into
    assert (logits(pico_llm, tmp_path / "adapter") - trained).abs().max() > 1e-2 * scale, "NF4 rounds this model"


def test_only_a_qlora_adapter_is_merged_into_a_dequantised_base(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not trained with qlora .*set merge.into=original"):
        merge_adapter(pico_llm, adapter, tmp_path / "merged", MergeSettings(into="dequantised"))


# shards, precision, parents ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_shards_are_merged_one_by_one(pico_llm: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base, out = tmp_path / "base", tmp_path / "merged"
    AutoModelForCausalLM.from_pretrained(pico_llm).save_pretrained(base, max_shard_size="100KB")
    merge_adapter(base, adapter, out)
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(names) > 2 and sorted(path.name for path in out.glob("*.safetensors")) == names
    index = json.loads((out / "model.safetensors.index.json").read_text())
    known = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == known["weight_map"]
    assert index["metadata"]["total_size"] == known["metadata"]["total_size"]
    tensors = {name: tensor for file in names for name, tensor in load_file(out / file).items()}
    whole = load_file(merged / "model.safetensors")
    assert tensors.keys() == whole.keys() and all(tensors[name].equal(whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_precision_of_the_merged_weights_is_chosen(
    dtype: Any, pico_llm: Path, adapter: Path, tmp_path: Path
) -> None:
    """Rounded once, from fp32; the config says so."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig

    merge_adapter(pico_llm, adapter, tmp_path / "exact")
    merge_adapter(pico_llm, adapter, tmp_path / "merged", MergeSettings(dtype=dtype))
    exact, found = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "merged"))
    assert all(found[name].equal(tensor.to(getattr(torch, dtype))) for name, tensor in exact.items())
    assert AutoConfig.from_pretrained(tmp_path / "merged").dtype == getattr(torch, dtype)
    assert json.loads((tmp_path / "merged" / "weights.json").read_text())["dtype"] == dtype


def test_weights_that_float16_cannot_hold_are_named(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    base = spoil_base(pico_llm, tmp_path / "base", "model.norm.weight", 1e5)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has 1 non-finite values in torch\.float16"):
        merge_adapter(base, adapter, tmp_path / "merged", MergeSettings(dtype="float16"))
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_refused_by_a_base_of_the_same_shape_with_other_weights(
    pico_llm: Path, adapter: Path, tmp_path: Path
) -> None:
    trained = shutil.copytree(adapter, tmp_path / "adapter")
    about = {
        "stage": "adapter",
        "parents": {"base": "input/models/pico"},
        "base_sha256": records.hash_content(pico_llm),
    }
    (trained / "weights.json").write_text(json.dumps(about))
    merge_adapter(pico_llm, trained, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "weights.json").read_text())["stage"] == "merged"
    foreign = spoil_base(pico_llm, tmp_path / "base", "model.norm.weight", 2.0)
    with pytest.raises(ValueError, match=r"was trained on input/models/pico .* has other weights"):
        merge_adapter(foreign, trained, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


# bad input --------------------------------------------------------------------------------------------------


def spoil_base(base: Path, folder: Path, name: str, value: float) -> Path:
    """A copy whose tensor `name` begins with `value`."""
    shutil.copytree(base, folder)
    spoil(folder / "model.safetensors", name, value)
    return folder


def spoil(file: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_base_with_a_value_that_is_not_finite_is_named(
    pico_llm: Path, adapter: Path, tmp_path: Path, name: str, value: float
) -> None:
    base = spoil_base(pico_llm, tmp_path / "base", name, value)
    with pytest.raises(ValueError, match=re.escape(name) + " has .*non-finite"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def change_adapter(adapter: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose tensors went through `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def test_an_adapter_with_nan_is_named(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    broken = change_adapter(
        adapter, tmp_path / "adapter", lambda tensors: tensors[f"{QUERY}B.weight"].fill_(float("nan"))
    )
    with pytest.raises(ValueError, match=r"non-finite values in .*q_proj\.lora_B\.weight: its training diverged"):
        merge_adapter(pico_llm, broken, tmp_path / "merged")


@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_factor_without_its_partner_is_named(pico_llm: Path, adapter: Path, tmp_path: Path, kind: str) -> None:
    broken = change_adapter(adapter, tmp_path / "adapter", lambda tensors: tensors.pop(f"{QUERY}{kind}.weight"))
    with pytest.raises(ValueError, match=rf"q_proj\.lora_{kind}|q_proj\.lora_B"):
        merge_adapter(pico_llm, broken, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_factors_that_do_not_go_together_are_named(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        tensors[f"{QUERY}A.weight"] = tensors[f"{QUERY}A.weight"][:3].contiguous()

    with pytest.raises(ValueError, match=r"q_proj has factors of shape \[3, 64\] and \[64, 4\]"):
        merge_adapter(pico_llm, change_adapter(adapter, tmp_path / "adapter", cut), tmp_path / "merged")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_trained_with_a_resized_vocabulary_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    larger = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    larger.resize_token_embeddings(larger.config.vocab_size + 8)
    larger.save_pretrained(tmp_path / "larger")
    make_causal(tmp_path / "larger", tmp_path / "adapter", modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match=r"embed_tokens\.weight, \[\d+, 64\] in the adapter, has the shape"):
        merge_adapter(pico_llm, tmp_path / "adapter", tmp_path / "merged")


def test_a_checkpoint_whose_shapes_are_not_those_of_its_config_is_refused(
    pico_llm: Path, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(pico_llm, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        changed = {**tensors, name: tensors[name][:32].contiguous()}
        save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=re.escape(name)):
            merge_adapter(base, adapter, tmp_path / "merged")


def test_a_quantised_base_is_refused(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    base = shutil.copytree(pico_llm, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"is quantised: .*set merge.into=nothing"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_pickles_are_refused_unopened(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    base, broken = shutil.copytree(pico_llm, tmp_path / "base"), shutil.copytree(adapter, tmp_path / "adapter")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        merge_adapter(base, adapter, tmp_path / "merged")
    with pytest.raises(ValueError, match=r"adapter_model\.bin, a pickle"):
        merge_adapter(pico_llm, broken, tmp_path / "merged")


def test_a_truncated_adapter_is_named(pico_llm: Path, adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    file = broken / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is truncated"):
        merge_adapter(pico_llm, broken, tmp_path / "merged")
