"""A PEFT adapter as pairs of LoRA factors: what it adds to each weight of its base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.weights.checkpoint import PICKLES, Checkpoint
from kaggle_llm.weights.shard_writer import one_thread

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR_ENDINGS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}  # A → B
MAGNITUDE_ENDINGS = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
BASE_COPY = ".base_layer."  # in the name of the base weight that PEFT saves beside LoRA on an embedding
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


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, whose tensors are read when needed. Modules are named without PEFT's prefix."""

    folder: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[str, str]]
    """Adapted module → names of its A and B in the file."""
    magnitudes: Mapping[str, str]
    """Adapted module → name of DoRA's magnitude in the file."""
    whole: Sequence[str]
    """All other tensors: those trained whole (modules_to_save), and PEFT's copies of base weights (BASE_COPY)."""

    @cached_property
    def about(self) -> dict[str, Any]:
        """Its weights.json; {} for an adapter that was not trained here."""
        return read_about(self.folder)

    @property
    def names(self) -> set[str]:
        """Names of all its tensors, without PEFT's prefix."""
        return {name.removeprefix(PREFIX) for name in self.checkpoint.tensors}

    @cached_property
    def factors(self) -> dict[str, Factors]:
        """Name of a weight in the base → what is added to it."""
        with one_thread():
            return {f"{module}.weight": self._read_factors(module) for module in self.pairs}

    @cached_property
    def whole_tensors(self) -> dict[str, torch.Tensor]:
        """Name of a weight in the base → what is in its place, fp32."""
        names = {name: name.removeprefix(PREFIX).replace(f"{BASE_COPY}weight", ".weight") for name in self.whole}
        return {weight: self.read(name).float() for name, weight in names.items()}

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a tensor in fp64; raises ValueError for non-finite values."""
        import torch

        stored = self.checkpoint.read(name)
        tensor = (stored[rows] if stored.ndim else stored).double()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {self.folder} has non-finite values in {name}: its training diverged")
        return tensor

    def read_pair(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [r, columns] and s·B [rows, r]."""
        a, b = (self.read(name) for name in self.pairs[module])
        return a, b * find_scaling(self.config, module)

    def shape(self, module: str) -> tuple[int, int, int]:
        """(rows, columns, rank) of a module's delta."""
        a, b = (self.checkpoint.tensors[name].shape for name in self.pairs[module])
        return b[0], a[1], a[0]

    def _read_factors(self, module: str) -> Factors:
        a, b = (self.read(name).float() for name in self.pairs[module])
        if "embedding" in self.pairs[module][0] or self.config.get(
            "fan_in_fan_out"
        ):  # stored transposed: (B·A)ᵀ = Aᵀ·Bᵀ
            a, b = b.T.contiguous(), a.T.contiguous()
        magnitude = self.read(self.magnitudes[module]).float() if module in self.magnitudes else None
        return Factors(a, b, find_scaling(self.config, module), magnitude)


def open_adapter(folder: Path) -> Adapter:
    """The adapter of a folder.

    Raises ValueError for what is more than pairs of factors (other methods than LoRA, convolutions, lora_bias), for
    factors without a partner or of another rank than the config's, from which their scaling follows, and a pickle.
    """
    config = records.read_json(folder / records.ADAPTER)
    check_lora_only(folder, config)
    checkpoint = open_tensors(folder)
    names = set(checkpoint.tensors)
    pairs = {
        name.removesuffix(a): (name, name.removesuffix(a) + b)
        for name in sorted(names)
        for a, b in FACTOR_ENDINGS.items()
        if name.endswith(a)
    }
    paired = {name for pair in pairs.values() for name in pair}
    if missing := sorted(paired - names):
        raise ValueError(f"adapter {folder} lacks {missing[0]}: save it again")
    magnitudes = {
        module: name for module in pairs for name in names & {module + ending for ending in MAGNITUDE_ENDINGS}
    }
    whole = sorted(names - paired - set(magnitudes.values()))
    if unpaired := [name for name in whole if "lora_" in name]:
        raise ValueError(f"adapter {folder} has {unpaired[0]}, which belongs to no pair of factors")
    adapter = Adapter(
        folder,
        config,
        checkpoint,
        {module.removeprefix(PREFIX): pair for module, pair in pairs.items()},
        {module.removeprefix(PREFIX): name for module, name in magnitudes.items()},
        whole,
    )
    check_factors(adapter)
    return adapter


def check_factors(adapter: Adapter) -> None:
    """Raises ValueError for factors that are not matrices of the config's rank, and for a lost magnitude."""
    for module, names in adapter.pairs.items():
        a, b = (adapter.checkpoint.tensors[name].shape for name in names)
        rank = find_rank(adapter.config, module)
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            raise ValueError(
                f"adapter {adapter.folder}: {module} has factors of shape {list(a)} and {list(b)}, {records.ADAPTER} "
                f"says rank {rank}: give matrices of this rank, with the config that they were saved with"
            )
        if bool(adapter.config.get("use_dora")) != (module in adapter.magnitudes):
            raise ValueError(f"adapter {adapter.folder}: use_dora does not match the magnitude of {module}")


def read_about(folder: Path) -> dict[str, Any]:
    """weights.json of a folder; {} where there is none."""
    return dict(records.read_optional(folder / records.WEIGHTS, {}))


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


def find_scaling(config: Mapping[str, Any], module: str) -> float:
    """α/r of a module, α/√r for rsLoRA (Kalajdzievski, arXiv 2312.03732), with the r and α that patterns give it."""
    from peft.utils.other import get_pattern_key

    alphas, r = config.get("alpha_pattern") or {}, find_rank(config, module)
    alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
    return float(alpha / r**0.5 if config.get("use_rslora") else alpha / r)


def find_rank(config: Mapping[str, Any], module: str) -> int:
    from peft.utils.other import get_pattern_key

    ranks = config.get("rank_pattern") or {}
    return int(ranks.get(get_pattern_key(ranks, module), config["r"]))


def check_trained_on(adapter: Adapter, base: Path) -> None:
    """Raises ValueError where the adapter was trained on other base weights, by its weights.json."""
    digest = adapter.about.get("base_sha256")
    if digest and digest != records.hash_content(base):
        trained = adapter.about.get("parents", {}).get("base", "another base")
        raise ValueError(
            f"adapter {paths.relative(adapter.folder)} was trained on {trained} with the hash {digest[:12]}…, "
            f"base {paths.relative(base)} has other weights: give it its own base, or train it again"
        )
