"""A model by its files: the config and the headers of its safetensors. No weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.engines.linear_head import is_sentence_encoder
from kaggle_llm.engines.maker import is_language_model, is_served_by_vllm
from kaggle_llm.engines.quantised import read_quantisation
from kaggle_llm.weights.checkpoint import ELEMENT_BITS, StoredTensor, is_float, read_header

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PACKED = (".weight_packed", ".qweight", "_blocks")
SCALES = ("scale", "scales", "zero_point", "qzeros", "g_idx", "weight_shape", "weight_global_scale")


@dataclass(frozen=True)
class ModelFacts:
    """A model folder, with its base model where the folder holds an adapter."""

    name: str
    folder: Path
    base: Path | None
    tensors: tuple[StoredTensor, ...]

    @property
    def weights(self) -> Path:
        return self.base or self.folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(records.read_json(self.weights / "config.json"))

    @cached_property
    def text(self) -> dict[str, Any]:
        """The config of the language model inside a multimodal model; else the config itself."""
        inner = self.config.get("text_config") or {}
        return {**self.config, **inner}

    @property
    def types(self) -> set[str]:
        """model_type of the model and of its text part."""
        return {self.config.get("model_type", ""), self.text.get("model_type", "")}

    @cached_property
    def adapter(self) -> dict[str, Any]:
        return dict(records.read_json(self.folder / records.ADAPTER)) if self.base else {}

    @cached_property
    def quantisation(self) -> dict[str, Any]:
        return read_quantisation(self.weights) or self.text.get("quantization_config") or {}

    @property
    def method(self) -> str:
        """How the weights are quantised, "" for full precision."""
        if any(self.weights.glob("*.gguf")):
            return "gguf"
        return str(self.quantisation.get("quant_method", ""))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """{"bits", "group_size", "symmetric", "activations"} of each kind of quantised weight; [] for none."""
        config = self.quantisation
        groups = [
            {**group["weights"], "activations": group.get("input_activations")}
            for group in (config.get("config_groups") or {}).values()
            if group.get("weights")
        ]
        if not groups and (config.get("bits") or config.get("w_bit")):
            symmetric = config.get("sym", not config.get("zero_point", self.method.startswith("awq")))
            size = config.get("group_size", config.get("q_group_size"))
            groups = [
                {"num_bits": config.get("bits") or config.get("w_bit"), "group_size": size, "symmetric": symmetric}
            ]
        return [
            {
                "bits": int(group.get("num_bits") or 4),
                "group_size": int(group.get("group_size") or -1),
                "symmetric": bool(group.get("symmetric", True)),
                "activations": group.get("activations"),
            }
            for group in groups
        ]

    @property
    def bits(self) -> int:
        """Bits of a packed weight."""
        return min((group["bits"] for group in self.groups), default=4)

    @property
    def is_language_model(self) -> bool:
        return is_language_model(self.folder, self.base)

    @property
    def is_sentence_encoder(self) -> bool:
        return self.base is None and is_sentence_encoder(self.folder)

    @property
    def is_served_by_vllm(self) -> bool:
        """By engine.kind; encoders have engine.embedder."""
        return is_served_by_vllm(self.folder, self.base)

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these keys that the config has: families name them differently."""
        for name in names:
            if isinstance(self.text.get(name), int):
                return int(self.text[name])
        if default is None:
            raise ValueError(f"{self.weights / 'config.json'} has none of {', '.join(names)}: is it a model's config?")
        return default

    @property
    def hidden(self) -> int:
        return self.number("hidden_size", "n_embd", "d_model")

    @property
    def layers(self) -> int:
        return self.number("num_hidden_layers", "n_layer", "num_layers")

    @property
    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", "num_heads")

    @property
    def kv_heads(self) -> int:
        return self.number("num_key_value_heads", "num_kv_heads", default=self.heads)

    @property
    def head_size(self) -> int:
        """Size of a head in the layer with the largest ones: some families give global layers larger heads."""
        usual = self.number("head_dim", default=self.hidden // self.heads)
        return max(usual, self.number("global_head_dim", default=0))

    @property
    def intermediate(self) -> int:
        return self.number("intermediate_size", "n_inner", "ffn_dim", default=4 * self.hidden)

    @property
    def vocabulary(self) -> int:
        return self.number("vocab_size", default=0)

    @property
    def longest(self) -> int:
        """Context length in tokens."""
        return self.number("max_position_embeddings", "n_positions", default=2048)

    @property
    def is_mla(self) -> bool:
        return self.text.get("kv_lora_rank") is not None

    @property
    def layer_types(self) -> list[str]:
        return list(self.text.get("layer_types") or [])

    @property
    def has_linear_attention(self) -> bool:
        families = ("qwen3_next", "qwen3_5", "qwen3_6")
        return "linear_attention" in self.layer_types or any(name.startswith(families) for name in self.types)

    @property
    def has_sliding_window(self) -> bool:
        is_set = self.text.get("sliding_window") and self.text.get("use_sliding_window", True)
        return bool(is_set) or any("sliding" in name for name in self.layer_types)

    @property
    def experts(self) -> tuple[int, int]:
        """(experts of a layer, experts that a token uses); (0, 0) for a dense model."""
        count = self.number("num_experts", "num_local_experts", "n_routed_experts", default=0)
        return count, self.number("num_experts_per_tok", "num_experts_per_token", default=count)

    def loaded_bytes(self, dtype: str) -> int:
        """Bytes of the weights in memory: floats in the engine's dtype, packed and 8-bit ones as stored."""
        return sum(
            tensor.elements * DTYPE_BYTES[dtype] if is_float(tensor.dtype) else tensor.size
            for tensor in self.tensors
            if not self._is_tied(tensor)
        )

    def unpacked_bytes(self, dtype: str) -> int:
        """Bytes of the weights where a quantised model is unpacked to the engine's dtype."""
        return self.parameters * DTYPE_BYTES[dtype]

    @property
    def parameters(self) -> int:
        return sum(parameters_of(tensor, self.bits) for tensor in self.tensors if not self._is_tied(tensor))

    @property
    def active_parameters(self) -> float:
        """Parameters that a token is multiplied with: no embeddings, and only the experts that it uses."""
        count, active = self.experts
        share = active / count if count else 1.0
        return sum(
            parameters_of(tensor, self.bits) * (share if ".experts." in tensor.name else 1.0)
            for tensor in self.tensors
            if not any(part in tensor.name for part in ("embed", "wte", "wpe", "lm_head"))
        )

    def _is_tied(self, tensor: StoredTensor) -> bool:
        """Whether it is the head of a tied model: the embeddings once more."""
        return tensor.name == "lm_head.weight" and bool(self.config.get("tie_word_embeddings"))


def parameters_of(tensor: StoredTensor, bits: int) -> int:
    """Weights in a tensor: a packed one holds several of `bits` in a number; scales do not count."""
    if tensor.name.endswith(SCALES):
        return 0
    if tensor.name.endswith(PACKED) and not is_float(tensor.dtype):
        return tensor.elements * ELEMENT_BITS[tensor.dtype] // bits
    return tensor.elements


def read_model_facts(name: str, folder: Path, base: Path | None = None) -> ModelFacts:
    """The model in `folder`, or the adapter there with its `base`.

    Raises FileNotFoundError where a config or a named shard is missing, ValueError for a file that is cut short.
    """
    weights = base or folder
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(f"{weights} has no config.json: give a Hugging Face folder")
    check_shards(weights)
    headers = [read_header(path) for path in sorted(weights.glob("*.safetensors"))]
    return ModelFacts(name, folder, base, tuple(tensor for header in headers for tensor in header.values()))


def check_shards(folder: Path) -> None:
    """Raises FileNotFoundError for a shard that the index names and the folder lacks."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(records.read_json(index)["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names: download it again")
