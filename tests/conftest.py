"""Models of a few thousand random weights with their own tokenizers, made in the session: nothing is downloaded."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pico import save_encoder, save_llama
from workspace import Workspace, make_workspace, succeed

HEADS = {  # class, settings of its config
    "bert-sequence": ("BertForSequenceClassification", {"num_labels": 3}),
    "bert-token": ("BertForTokenClassification", {"num_labels": 4}),
    "llama-sequence": ("LlamaForSequenceClassification", {"num_labels": 3}),
    "llama-without-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": None}),
    "llama-with-other-padding": ("LlamaForSequenceClassification", {"num_labels": 3, "pad_token_id": 5}),
}


@pytest.fixture(scope="session")
def pico_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of two layers; read only."""
    return save_llama(tmp_path_factory.mktemp("models") / "pico-llm")


@pytest.fixture(scope="session")
def pico_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of two layers: Transformer, mean Pooling, Normalize; read only."""
    return save_encoder(tmp_path_factory.mktemp("models") / "pico-encoder")


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., Path]:
    """make_llm(folder, **config changes) → folder, for tests that need another causal LM."""
    return save_llama


@pytest.fixture(scope="session")
def broken_llm(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pico_llm whose last norm is NaN; read only."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "broken-llm"
    shutil.copytree(pico_llm, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session", params=HEADS)
def pico_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a head of `HEADS`; read only."""
    import torch
    import transformers

    name, changes = HEADS[request.param]
    base = request.getfixturevalue("pico_llm" if name.startswith("Llama") else "pico_encoder")
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    getattr(transformers, name)(transformers.AutoConfig.from_pretrained(base, **changes)).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def with_lora() -> Callable[..., Any]:
    """with_lora(base, **config changes) → the base with an adapter that changes every linear matrix: B is not zero.

    Matrices are named without their layer, as PEFT writes all-linear down for models of three layers and more.
    """

    def attach(base: Path, **config: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **config)
        names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        return model

    return attach


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pico_llm: Path, pico_encoder: Path) -> Workspace:
    """A repository of its own in which exp002_rerank--smoke is complete."""
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"), pico_llm, pico_encoder)
    succeed(workspace.train("exp002_rerank", "--smoke"))
    return workspace


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, pico_llm: Path, pico_encoder: Path) -> Iterator[Workspace]:
    """A repository with an experiment whose session takes seconds: see light.py. The tests' own root while it lasts."""
    from light import make_light_workspace

    with pytest.MonkeyPatch.context() as patch:
        workspace = make_light_workspace(tmp_path_factory.mktemp("light"), pico_llm, pico_encoder)
        patch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
        yield workspace
