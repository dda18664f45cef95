"""What merge.py merges: a random bfloat16 checkpoint of Llama's shape, two that lie near to it, and an adapter.

Leaves base, first, second and adapter in a folder, written by the safetensors library, one shard in memory at a time.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records

if TYPE_CHECKING:
    import torch

MEMBERS = ("first", "second")
RANK, ALPHA = 16, 32
SHARD = 2**29  # bytes; no shard is larger than this and one tensor


def model_config(gb: float) -> dict[str, Any]:
    """Llama's config with as many layers as make a checkpoint of `gb` · 10⁹ bytes."""
    hidden = 2048 if gb >= 1 else 256
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": 16 * hidden,
        "hidden_size": hidden,
        "intermediate_size": 11 * hidden // 4,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "tie_word_embeddings": False,
        "num_hidden_layers": 1,
    }
    sizes = [2 * rows * columns for rows, columns in list_shapes({**config, "num_hidden_layers": 0}).values()]
    layer = [2 * rows * columns for rows, columns in list_shapes(config).values()]
    per_layer = sum(layer) - sum(sizes)
    return {**config, "num_hidden_layers": max(1, -int((sum(sizes) - gb * 1e9) // per_layer))}


def list_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Of all tensors, in the order in which they are stored; a vector has one column here."""
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        inside = {
            "input_layernorm": (hidden, 1),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden, 1),
            "mlp.gate_proj": (middle, hidden),
            "mlp.up_proj": (middle, hidden),
            "mlp.down_proj": (hidden, middle),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return {**shapes, "model.norm.weight": (hidden, 1), "lm_head.weight": (config["vocab_size"], hidden)}


def draw(name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """fp32, N(0, 0.02²); the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.empty(*shape).normal_(0, 0.02, generator=generator)


def make_checkpoint(folder: Path, config: Mapping[str, Any], member: int) -> None:
    """Member 0 is the base, each other one the base with a noise of its own; written by the safetensors library."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shapes = list_shapes(config)
    folder.mkdir()
    for name, (rows, columns) in shapes.items():
        tensor = draw(name, (rows, columns), 0)
        if member:
            tensor += 0.1 * draw(name, (rows, columns), member)
        shard[name] = (tensor if columns > 1 else 1 + tensor[:, 0]).bfloat16()
        if sum(one.nbytes for one in shard.values()) >= SHARD or name == next(reversed(shapes)):
            file = f"model-{len(set(places.values())) + 1:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, file)
            shard = {}
    total = sum(2 * rows * columns for rows, columns in shapes.values())
    records.write_json(folder / "config.json", config)
    make_tokenizer(folder)
    records.write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
    )


def make_tokenizer(folder: Path) -> None:
    """One of two words: a folder without any is no model."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)


def make_adapter(folder: Path, config: Mapping[str, Any]) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, task_type="CAUSAL_LM").save_pretrained(folder)
    tensors = {}
    for name, (rows, columns) in list_shapes(config).items():
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for kind, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                tensors[f"{module}.lora_{kind}.weight"] = draw(f"{module}.{kind}", shape, 0)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def make_models(folder: Path, gb: float) -> None:
    config = model_config(gb)
    for member, name in enumerate(("base", *MEMBERS)):
        make_checkpoint(folder / name, config, member)
    make_adapter(folder / "adapter", config)


# as their own library reads them ----------------------------------------------------------------------------


def list_tensors(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """Name → reads the tensor with the safetensors library, for all of a folder."""
    from safetensors import safe_open

    def read(path: Path, name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    found: dict[str, Callable[[], torch.Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: functools.partial(read, path, name) for name in file.keys()}  # noqa: SIM118  no mapping
    return found


def compute_reference(models: Path, adapter: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """Name → W + s·B·A in fp32, rounded once to bfloat16; the base itself without the adapter."""
    base = list_tensors(models / "base")
    factors = list_tensors(models / "adapter") if adapter else {}

    def merge(name: str) -> torch.Tensor:
        weight, module = base[name](), f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" not in factors:
            return weight
        a, b = (factors[f"{module}.lora_{kind}.weight"]() for kind in ("A", "B"))
        return (weight.float() + ALPHA / RANK * (b @ a)).to(weight.dtype)

    return {name: functools.partial(merge, name) for name in base}
