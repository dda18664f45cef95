"""What the files of a model say: its config, and the headers of its safetensors. No weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.engines.maker import is_language_model
from kaggle_llm.engines.quantised import read_quantisation

HEADER = 8  # bytes that hold the length of a safetensors header
BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
}
FLOATS = ("F64", "F32", "F16", "BF16")  # become the engine's dtype; the others stay what they are
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PACKED = (".weight_packed", ".qweight", "_blocks")
SCALES = ("scale", "scales", "zero_point", "qzeros", "g_idx", "weight_shape", "weight_global_scale")


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return math.ceil(self.size * BITS[self.dtype] / 8)


@dataclass(frozen=True)
class Model:
    """One model as it ships: a folder, and its base where the folder holds an adapter."""

    name: str
    folder: Path
    base: Path | None
    tensors: tuple[Tensor, ...]

    @property
    def weights(self) -> Path:
        return self.base or self.folder

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = records.read_json(self.weights / "config.json")
        return found

    @cached_property
    def text(self) -> dict[str, Any]:
        """The config of the language model within, where the model has other parts too."""
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
        told = [one for one in (config.get("config_groups") or {}).values() if one.get("weights")]
        found = [{**one["weights"], "activations": one.get("input_activations")} for one in told]
        if not found and (config.get("bits") or config.get("w_bit")):
            symmetric = config.get("sym", not config.get("zero_point", self.method.startswith("awq")))
            size = config.get("group_size", config.get("q_group_size"))
            found = [
                {"num_bits": config.get("bits") or config.get("w_bit"), "group_size": size, "symmetric": symmetric}
            ]
        return [
            {
                "bits": int(one.get("num_bits") or 4),
                "group_size": int(one.get("group_size") or -1),
                "symmetric": bool(one.get("symmetric", True)),
                "activations": one.get("activations"),
            }
            for one in found
        ]

    @property
    def bits(self) -> int:
        """Of a packed weight."""
        return min((group["bits"] for group in self.groups), default=4)

    @property
    def is_language_model(self) -> bool:
        return is_language_model(self.folder, self.base)

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these keys that the config has; families name them differently."""
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
        """The largest that a layer has; some families give their global layers larger heads."""
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
        """Tokens that the model was made for."""
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
        return "linear_attention" in self.layer_types or any(one.startswith(families) for one in self.types)

    @property
    def has_sliding_window(self) -> bool:
        wanted = self.text.get("sliding_window") and self.text.get("use_sliding_window", True)
        return bool(wanted) or any("sliding" in kind for kind in self.layer_types)

    @property
    def experts(self) -> tuple[int, int]:
        """(experts of a layer, those that a token goes through); (0, 0) for a dense model."""
        count = self.number("num_experts", "num_local_experts", "n_routed_experts", default=0)
        return count, self.number("num_experts_per_tok", "num_experts_per_token", default=count)

    def loaded_bytes(self, dtype: str) -> int:
        """Of the weights in memory: floats in the engine's dtype, packed and 8-bit ones as they are stored."""
        return sum(
            tensor.size * DTYPE_BYTES[dtype] if tensor.dtype in FLOATS else tensor.bytes
            for tensor in self.tensors
            if not self._is_tied(tensor)
        )

    def unpacked_bytes(self, dtype: str) -> int:
        """Of the weights where a quantised model is unpacked to the engine's dtype."""
        return self.parameters * DTYPE_BYTES[dtype]

    @property
    def parameters(self) -> int:
        return sum(parameters_of(tensor, self.bits) for tensor in self.tensors if not self._is_tied(tensor))

    @property
    def active_parameters(self) -> float:
        """That a token is multiplied with: no table of embeddings, and of the experts only those it goes through."""
        count, active = self.experts
        share = active / count if count else 1.0
        return sum(
            parameters_of(tensor, self.bits) * (share if ".experts." in tensor.name else 1.0)
            for tensor in self.tensors
            if not any(part in tensor.name for part in ("embed", "wte", "wpe", "lm_head"))
        )

    def _is_tied(self, tensor: Tensor) -> bool:
        """The head of a tied model, which is the table of embeddings once more."""
        return tensor.name == "lm_head.weight" and bool(self.config.get("tie_word_embeddings"))


def parameters_of(tensor: Tensor, bits: int) -> int:
    """Weights that a tensor holds: a packed one holds several of `bits` in a number, scales are none."""
    if tensor.name.endswith(SCALES):
        return 0
    if tensor.name.endswith(PACKED) and tensor.dtype not in FLOATS:
        return tensor.size * BITS[tensor.dtype] // bits
    return tensor.size


def read_model(name: str, folder: Path, base: Path | None = None) -> Model:
    """The model in `folder`, or the adapter there with its `base`.

    Raises FileNotFoundError where a config or a named shard is missing, ValueError for a file that is cut short.
    """
    weights = base or folder
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(f"{weights} has no config.json: give a Hugging Face folder")
    check_shards(weights)
    tensors = [tensor for path in sorted(weights.glob("*.safetensors")) for tensor in read_header(path)]
    return Model(name, folder, base, tuple(tensors))


def check_shards(folder: Path) -> None:
    """Raises FileNotFoundError for a shard that the index names and the folder lacks."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(records.read_json(index)["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names: download it again")


def read_header(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file by its header (8 bytes of length, then JSON)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER), "little")
        if length > size - HEADER:
            raise ValueError(
                f"{path} is no whole safetensors file (its header ends behind the file): download it again"
            )
        header: Mapping[str, Any] = json.loads(file.read(length))
    found = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = HEADER + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    if end > size:
        raise ValueError(f"{path} has {size:,} of {end:,} bytes: download it again")
    for name, entry in found.items():
        if entry["dtype"] not in BITS:
            raise ValueError(f"{path}: {name} has the dtype {entry['dtype']}, known are {', '.join(BITS)}")
        yield Tensor(name, entry["dtype"], tuple(entry["shape"]))
