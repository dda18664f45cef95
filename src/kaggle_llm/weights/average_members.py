"""The members of an average of adapters: opened, their factors paired, refused where they do not belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.weights.adapter import PREFIX, check_lora_only, find_scaling, open_tensors, read_about
from kaggle_llm.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

FACTOR_ENDINGS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}  # A → B
BASE_COPY = ".base_layer."  # in the name of the base weight that PEFT saves beside LoRA on an embedding
MUST_AGREE = {  # what members must have in common → the way out
    "base_model_name_or_path": "average adapters of one base; correct the path where it is the same model",
    "base_sha256": "average adapters of one base",
    "task_type": "average adapters of one task",
    "modules_to_save": "train the members with the same modules_to_save",
    "layer_replication": "train the members with the same layer_replication",
    "id2label": "train the members with the labels in the same order",
}


@dataclass(frozen=True)
class AveragedAdapter:
    """A member of the average: an adapter folder, whose tensors are read when needed."""

    folder: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    """Its weights.json; {} for an adapter that was not trained here."""
    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[str, str]]
    """Adapted module, by its name in the file → names of its A and B."""
    whole: Sequence[str]
    """All other tensors: those trained whole (modules_to_save), and PEFT's copies of base weights (BASE_COPY)."""

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a tensor in fp64; raises ValueError for non-finite values."""
        import torch

        stored = self.checkpoint.read(name)
        tensor = (stored[rows] if stored.ndim else stored).double()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter {self.folder} has non-finite values in {name}: it diverged, leave it out")
        return tensor

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [r, columns] and s·B [rows, r]."""
        a, b = (self.read(name) for name in self.pairs[module])
        return a, b * self.scaling(module)

    def scaling(self, module: str) -> float:
        return find_scaling(self.config, module.removeprefix(PREFIX))

    def shape(self, module: str) -> tuple[int, int, int]:
        """(rows, columns, rank) of a module's delta."""
        a, b = (self.checkpoint.tensors[name].shape for name in self.pairs[module])
        return b[0], a[1], a[0]


def open_adapter(folder: Path) -> AveragedAdapter:
    if not (folder / records.ADAPTER).is_file():
        raise ValueError(f"{folder} holds no {records.ADAPTER}: only adapters can be averaged here, no whole models")
    config = records.read_json(folder / records.ADAPTER)
    check_lora_only(folder, config)
    if config.get("use_dora"):
        raise ValueError(
            f"adapter {folder} was trained with use_dora: its magnitudes depend on the base; merge every "
            f"member into the base and average the merged models instead"
        )
    checkpoint = open_tensors(folder)
    pairs = pair_names(folder, checkpoint)
    whole = sorted(set(checkpoint.tensors) - {name for pair in pairs.values() for name in pair})
    member = AveragedAdapter(folder, config, read_about(folder), checkpoint, pairs, whole)
    check_factors(member)
    return member


def pair_names(folder: Path, checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Adapted module → names of its A and B; raises ValueError for LoRA tensors without a partner."""
    pairs = {
        name.removesuffix(a): (name, name.removesuffix(a) + b)
        for name in sorted(checkpoint.tensors)
        for a, b in FACTOR_ENDINGS.items()
        if name.endswith(a)
    }
    paired = {name for pair in pairs.values() for name in pair}
    missing = sorted(paired - set(checkpoint.tensors))
    if missing:
        raise ValueError(f"adapter {folder} lacks {missing[0]}: save it again")
    unpaired = sorted(name for name in set(checkpoint.tensors) - paired if "lora_" in name)
    if unpaired:
        raise ValueError(
            f"adapter {folder} has {unpaired[0]}, which belongs to no pair of factors: average merged models"
        )
    return pairs


def check_factors(member: AveragedAdapter) -> None:
    """Raises ValueError for factors that are not matrices of the config's rank, from which their scaling follows."""
    from peft.utils.other import get_pattern_key

    patterns = member.config.get("rank_pattern") or {}
    for module, names in member.pairs.items():
        a, b = (member.checkpoint.tensors[name].shape for name in names)
        rank = patterns.get(get_pattern_key(patterns, module.removeprefix(PREFIX)), member.config["r"])
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            raise ValueError(
                f"adapter {member.folder}: {module} has factors of shape {list(a)} and {list(b)}, {records.ADAPTER} "
                f"says rank {rank}: only matrices can be averaged, with the config that they were saved with"
            )


def check_belong_together(members: Sequence[AveragedAdapter]) -> None:
    """Raises ValueError naming two members that cannot be averaged, and what differs."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} adapter(s) to average: name two or more")
    for name, way_out in MUST_AGREE.items():
        values: dict[str, AveragedAdapter] = {}
        for member in members:
            facts = list_facts(member)
            if name in facts:
                values.setdefault(json.dumps(facts[name], sort_keys=True), member)
        if len(values) > 1:
            (value, first), (other, second), *_ = values.items()
            raise ValueError(
                f"adapters {first.folder} and {second.folder} differ in {name}, {value} and {other}: {way_out}"
            )
    check_shapes(members)


def list_facts(member: AveragedAdapter) -> dict[str, Any]:
    """The member's values of MUST_AGREE, without those that are unknown."""
    facts = {name: member.config.get(name) for name in ("base_model_name_or_path", "task_type", "layer_replication")}
    facts["modules_to_save"] = sorted(member.config.get("modules_to_save") or [])
    model = member.folder / "config.json"
    optional = {
        "base_sha256": member.about.get("base_sha256"),
        "id2label": records.read_json(model).get("id2label") if model.is_file() else None,
    }
    return facts | {name: value for name, value in optional.items() if value is not None}


def check_shapes(members: Sequence[AveragedAdapter]) -> None:
    """Raises ValueError where shapes differ, or a tensor was trained whole by some of the members only."""
    first, seen = members[0], dict[str, tuple[tuple[int, ...], AveragedAdapter]]()
    for member in members:
        lacking = sorted(name for name in set(member.whole) ^ set(first.whole) if BASE_COPY not in name)
        if lacking:
            raise ValueError(
                f"{lacking[0]} was trained whole in only one of {first.folder} and {member.folder}: "
                f"train the members with the same modules_to_save"
            )
        shapes: dict[str, tuple[int, ...]] = {name: member.checkpoint.tensors[name].shape for name in member.whole}
        shapes |= {module: member.shape(module)[:2] for module in member.pairs}
        for name, shape in shapes.items():
            other, owner = seen.setdefault(name, (shape, member))
            if shape != other:
                raise ValueError(
                    f"{name} is {list(other)} in {owner.folder} and {list(shape)} in {member.folder}: "
                    f"average adapters of one base and one set of labels"
                )
