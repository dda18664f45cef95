"""A PEFT adapter as pairs of factors: what it adds to each weight of its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.weights.checkpoint import PICKLES, Checkpoint, one_thread

if TYPE_CHECKING:
    import torch

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = (
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
INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # those that leave the base as it is


@dataclass(frozen=True)
class Factors:
    """delta = scaling · b @ a, in the layout in which the base stores the weight."""

    a: torch.Tensor
    """[r, columns] fp32."""
    b: torch.Tensor
    """[rows, r] fp32."""
    scaling: float
    magnitude: torch.Tensor | None = None
    """DoRA's length of each row of the merged weight, [rows]."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def merge_rows(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rows of the merged weight from the same rows of the base's, in fp32: W + s·B·A.

        With a magnitude m each row is m · (W + s·B·A) / ‖W + s·B·A‖ (Liu et al., DoRA, arXiv 2402.09353, equation 5).
        """
        import torch

        merged = torch.mm(self.b[rows], self.a).mul_(self.scaling).add_(weight)
        if self.magnitude is not None:
            merged *= (self.magnitude[rows] / torch.linalg.norm(merged, dim=1))[:, None]
        return merged


@dataclass
class Adapter:
    """What an adapter folder holds."""

    folder: Path
    config: Mapping[str, Any]
    factors: dict[str, Factors] = field(default_factory=dict)
    """By the name of the weight in the base."""
    names: set[str] = field(default_factory=set)
    """Of its tensors, without PEFT's prefix."""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that were trained whole (modules_to_save), by the name of the parameter."""

    @property
    def about(self) -> dict[str, Any]:
        """Its weights.json; {} for an adapter that others made."""
        path = self.folder / records.WEIGHTS
        return records.read_json(path) if path.is_file() else {}


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder, in fp32.

    Raises ValueError for what cannot be written as factors (another method than LoRA, convolutions, lora_bias), for
    tensors without a partner or with non-finite values, and for a pickle.
    """
    config = records.read_json(folder / records.ADAPTER)
    check_kind(folder, config)
    with one_thread():
        tensors = dict(read_tensors(folder))
    adapter = Adapter(folder, config, names=set(tensors))
    for name in sorted(tensors):
        module, found, _ = name.partition(".lora_A.")
        if not found:
            module, found, _ = name.partition(".lora_embedding_A")
        if found:
            weight = f"{module}.weight"
            adapter.factors[weight] = take_factors(adapter, tensors, module, embedding="embedding" in found)
    adapter.whole = {name.replace(".base_layer.weight", ".weight"): tensor for name, tensor in tensors.items()}
    strange = sorted(name for name in adapter.whole if "lora_" in name)
    if strange:
        raise ValueError(f"adapter {folder} has {strange[0]}, which belongs to no pair of factors")
    return adapter


def check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError for an adapter that is more than pairs of factors."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"adapter {folder} is {config.get('peft_type')!r}: only LoRA and its kinds can be merged here")
    used = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("use_dora") and config.get("fan_in_fan_out"):
        used.append("use_dora with fan_in_fan_out")
    if used:
        raise ValueError(f"adapter {folder} was trained with {', '.join(used)}: merge it with PEFT's merge_and_unload")
    init = config.get("init_lora_weights")
    if init not in INITS:
        raise ValueError(
            f"adapter {folder} has init_lora_weights = {init!r}, which changes the base: save it as a usual adapter "
            f"with PEFT's path_initial_model_for_weight_conversion"
        )


def open_tensors(folder: Path) -> Checkpoint:
    """The tensors of an adapter folder, not yet read; raises ValueError where there are none, or a pickle."""
    if not (folder / FILE).is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        why = f"holds {pickles[0]}, a pickle: safetensors only, save it again" if pickles else f"lacks {FILE}"
        raise ValueError(f"adapter {folder} {why}")
    return Checkpoint(folder, [folder / FILE])


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name without PEFT's prefix, tensor in fp32) of an adapter folder."""
    import torch

    file = open_tensors(folder)
    for name in file.tensors:
        tensor = file.read(name).float()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {folder} has non-finite values in {name}: its training diverged")
        yield name.removeprefix(PREFIX), tensor


def take_factors(adapter: Adapter, tensors: dict[str, torch.Tensor], module: str, embedding: bool) -> Factors:
    """The factors of one module, taken out of `tensors`; raises ValueError where one is missing or no matrix."""
    names = [f"{module}.lora_{kind}" for kind in ("embedding_A", "embedding_B", "magnitude_vector")]
    if not embedding:
        names[:2] = [f"{module}.lora_{kind}.weight" for kind in ("A", "B")]
    missing = [name for name in names[:2] if name not in tensors]
    if missing:
        raise ValueError(f"adapter {adapter.folder} lacks {missing[0]}")
    a, b = (tensors.pop(name) for name in names[:2])
    magnitude = tensors.pop(names[2], tensors.pop(f"{names[2]}.weight", None))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"adapter {adapter.folder}: {module} has factors of shape {list(a.shape)} and {list(b.shape)}")
    if bool(adapter.config.get("use_dora")) != (magnitude is not None):
        raise ValueError(f"adapter {adapter.folder}: use_dora and the magnitude of {module} do not go together")
    if embedding or adapter.config.get("fan_in_fan_out"):  # stored the other way round: (B·A)ᵀ = Aᵀ·Bᵀ
        a, b = b.T.contiguous(), a.T.contiguous()
    return Factors(a, b, find_scaling(adapter.config, module), magnitude)


def find_scaling(config: Mapping[str, Any], module: str) -> float:
    """α/r of a module, α/√r for rsLoRA (Kalajdzievski, arXiv 2312.03732); its own r and α where patterns say so."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    r = ranks.get(get_pattern_key(ranks, module), config["r"])
    alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
    return float(alpha / r**0.5 if config.get("use_rslora") else alpha / r)


def check_base(adapter: Adapter, base: Path) -> None:
    """Raises ValueError where the adapter was trained on other weights than those of `base`, as it remembers them."""
    known = adapter.about.get("base_sha256")
    if known and known != records.hash_content(base):
        trained = adapter.about.get("parents", {}).get("base", "another base")
        raise ValueError(
            f"adapter {paths.relative(adapter.folder)} was trained on {trained} with the hash {known[:12]}…, "
            f"base {paths.relative(base)} has other weights: give it its own base, or train it again"
        )
