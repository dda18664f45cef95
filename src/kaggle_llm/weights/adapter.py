"""A PEFT adapter as pairs of LoRA factors: what it adds to each weight of its base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.weights.checkpoint import PICKLES, Checkpoint
from kaggle_llm.weights.shard_writer import one_thread

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED_OPTIONS = (
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # they leave the base unchanged


@dataclass(frozen=True)
class Factors:
    """LoRA factors of one weight: delta = scaling · b @ a, in the layout of the base's weight."""

    a: torch.Tensor
    """[r, columns] fp32."""
    b: torch.Tensor
    """[rows, r] fp32."""
    scaling: float
    magnitude: torch.Tensor | None = None
    """DoRA's norm of each row of the merged weight, [rows]."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def merge_rows(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rows of the merged weight W + s·B·A in fp32. weight: the same rows of the base.

        With a magnitude m each row is m · (W + s·B·A) / ‖W + s·B·A‖ (Liu et al., DoRA, arXiv 2402.09353, equation 5).
        """
        import torch

        merged = torch.mm(self.b[rows], self.a).mul_(self.scaling).add_(weight)
        if self.magnitude is not None:
            merged *= (self.magnitude[rows] / torch.linalg.norm(merged, dim=1))[:, None]
        return merged


@dataclass
class Adapter:
    """The content of an adapter folder."""

    folder: Path
    config: Mapping[str, Any]
    factors: dict[str, Factors] = field(default_factory=dict)
    """Name of a weight in the base → what is added to it."""
    names: set[str] = field(default_factory=set)
    """Names of all its tensors, without PEFT's prefix."""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameters that were trained whole (modules_to_save)."""

    @property
    def about(self) -> dict[str, Any]:
        """Its weights.json; {} for an adapter that was not trained here."""
        return read_about(self.folder)


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder, in fp32.

    Raises ValueError for what is more than pairs of factors (other methods than LoRA, convolutions, lora_bias), for
    factors without a partner, non-finite values, and a pickle.
    """
    config = records.read_json(folder / records.ADAPTER)
    check_lora_only(folder, config)
    with one_thread():
        tensors = dict(read_tensors(folder))
    adapter = Adapter(folder, config, names=set(tensors))
    for name in sorted(tensors):
        for marker in (".lora_A.", ".lora_embedding_A"):
            module, separator, _ = name.partition(marker)
            if separator:
                factors = take_factors(adapter, tensors, module, embedding="embedding" in marker)
                adapter.factors[f"{module}.weight"] = factors
    adapter.whole = {name.replace(".base_layer.weight", ".weight"): tensor for name, tensor in tensors.items()}
    unpaired = sorted(name for name in adapter.whole if "lora_" in name)
    if unpaired:
        raise ValueError(f"adapter {folder} has {unpaired[0]}, which belongs to no pair of factors")
    return adapter


def read_about(folder: Path) -> dict[str, Any]:
    """weights.json of a folder; {} where there is none."""
    path = folder / records.WEIGHTS
    return dict(records.read_json(path)) if path.is_file() else {}


def check_lora_only(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for an adapter that is more than pairs of LoRA factors."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"adapter {folder} is {config.get('peft_type')!r}: only LoRA variants can be merged here")
    used = [name for name in UNSUPPORTED_OPTIONS if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("use_dora") and config.get("fan_in_fan_out"):
        used.append("use_dora with fan_in_fan_out")
    if used:
        raise ValueError(f"adapter {folder} was trained with {', '.join(used)}: merge it with PEFT's merge_and_unload")
    init = config.get("init_lora_weights")
    if init not in HARMLESS_INITS:
        raise ValueError(
            f"adapter {folder} has init_lora_weights = {init!r}, which changes the base: save it as a usual adapter "
            f"with PEFT's path_initial_model_for_weight_conversion"
        )


def open_tensors(folder: Path) -> Checkpoint:
    """The tensors of an adapter folder, not yet read; raises ValueError where it has no safetensors file."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        fault = f"holds {pickles[0]}, a pickle: save it again as safetensors" if pickles else f"lacks {ADAPTER_WEIGHTS}"
        raise ValueError(f"adapter {folder} {fault}")
    return Checkpoint(folder, [folder / ADAPTER_WEIGHTS])


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name without PEFT's prefix, tensor in fp32) of an adapter folder."""
    import torch

    checkpoint = open_tensors(folder)
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name).float()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {folder} has non-finite values in {name}: its training diverged")
        yield name.removeprefix(PREFIX), tensor


def take_factors(adapter: Adapter, tensors: dict[str, torch.Tensor], module: str, embedding: bool) -> Factors:
    """The factors of one module, removed from `tensors`; raises ValueError where one is missing or not a matrix."""
    endings = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    names = [f"{module}.{ending}" for ending in endings]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"adapter {adapter.folder} lacks {missing[0]}")
    a, b = (tensors.pop(name) for name in names)
    vector = f"{module}.lora_magnitude_vector"
    magnitude = tensors.pop(vector, tensors.pop(f"{vector}.weight", None))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"adapter {adapter.folder}: {module} has factors of shape {list(a.shape)} and {list(b.shape)}")
    if bool(adapter.config.get("use_dora")) != (magnitude is not None):
        raise ValueError(f"adapter {adapter.folder}: use_dora does not match the magnitude of {module}")
    if embedding or adapter.config.get("fan_in_fan_out"):  # stored transposed: (B·A)ᵀ = Aᵀ·Bᵀ
        a, b = b.T.contiguous(), a.T.contiguous()
    return Factors(a, b, find_scaling(adapter.config, module), magnitude)


def find_scaling(config: Mapping[str, Any], module: str) -> float:
    """α/r of a module, α/√r for rsLoRA (Kalajdzievski, arXiv 2312.03732), with the r and α that patterns give it."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    r = ranks.get(get_pattern_key(ranks, module), config["r"])
    alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
    return float(alpha / r**0.5 if config.get("use_rslora") else alpha / r)


def check_trained_on(adapter: Adapter, base: Path) -> None:
    """Raises ValueError where the adapter was trained on other base weights, by its weights.json."""
    digest = adapter.about.get("base_sha256")
    if digest and digest != records.hash_content(base):
        trained = adapter.about.get("parents", {}).get("base", "another base")
        raise ValueError(
            f"adapter {paths.relative(adapter.folder)} was trained on {trained} with the hash {digest[:12]}…, "
            f"base {paths.relative(base)} has other weights: give it its own base, or train it again"
        )
