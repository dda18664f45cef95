"""Several adapters of one base, such as those of the folds, averaged into one: the mean of what they add to the base.

Leaves adapter_config.json, adapter_model.safetensors in fp32, the first member's config.json and tokenizer, and
weights.json, which names the members and what the method lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.weights.adapter import ADAPTER_WEIGHTS, PREFIX, check_lora_only, find_scaling, open_tensors, read_about
from kaggle_llm.weights.checkpoint import (
    Checkpoint,
    Output,
    copy_text_files,
    fill_folder,
    row_blocks,
    write_safetensors,
)

if TYPE_CHECKING:
    import torch

FACTOR_ENDINGS = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora_embedding_A": ".lora_embedding_B",
}  # A → B
BASE_COPY = ".base_layer."  # in the name of the base weight that PEFT saves beside LoRA on an embedding
MODULE_OPTIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
MUST_AGREE = {  # what members must have in common → the way out
    "base_model_name_or_path": "average adapters of one base; correct the path where it is the same model",
    "base_sha256": "average adapters of one base",
    "task_type": "average adapters of one task",
    "modules_to_save": "train the members with the same modules_to_save",
    "layer_replication": "train the members with the same layer_replication",
    "id2label": "train the members with the labels in the same order",
}
INHERITED = ("base_sha256", "method", "dtype")  # keys of weights.json that merging needs, where the members agree


@dataclass
class AverageSettings:
    method: Literal["exact", "svd", "factors"] = "exact"
    """exact: the result's rank is the sum of the members'. svd: the nearest matrices of `rank`; the kept energy is
    reported. factors: mean(B)·mean(A), which is not the mean of B·A; its error is reported."""
    rank: int = 0
    """Rank of svd's result; 0 for the other methods."""

    def __post_init__(self) -> None:
        if self.method == "svd" and self.rank < 1:
            raise ValueError(f"rank = {self.rank}: method svd needs a rank of 1 or more")
        if self.method != "svd" and self.rank:
            raise ValueError(f"rank = {self.rank} has no effect on method {self.method}: set method=svd, or rank=0")


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


def average_adapters(adapters: Sequence[Path], folder: Path, settings: AverageSettings | None = None) -> None:
    """Write into `folder` one adapter whose delta on every matrix is the mean of the members' s·B·A.

    A matrix that a member does not adapt counts as zero; tensors trained whole are averaged as they are. `folder` is
    complete or absent afterwards. With methods exact and svd ranks and α may differ. Computed in fp64, without the
    base. Raises ValueError naming the member for members of different bases or tasks, variants of LoRA whose delta is
    more than factors, non-finite values, and broken or pickled files.
    """
    settings = settings or AverageSettings()
    members = [open_adapter(adapter) for adapter in adapters]
    check_belong_together(members)
    if folder.resolve() in [member.folder.resolve() for member in members]:
        raise ValueError(f"{folder} is a member of the average, which would replace it: name another folder")
    fill_folder(folder, partial(fill_average, Average(members, settings)))


# reading and refusing ---------------------------------------------------------------------------------------


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


# averaging --------------------------------------------------------------------------------------------------


class Average:
    """The mean of the members, computed one module at a time."""

    def __init__(self, members: Sequence[AveragedAdapter], settings: AverageSettings) -> None:
        self.members, self.settings = members, settings
        self.owners: dict[str, list[AveragedAdapter]] = {}
        """Module → the members that adapt it."""
        self.whole: dict[str, list[AveragedAdapter]] = {}
        """Tensor that is no LoRA factor → the members that have it (all, but for copies of base weights)."""
        for member in members:
            for module in member.pairs:
                self.owners.setdefault(module, []).append(member)
            for name in member.whole:
                self.whole.setdefault(name, []).append(member)
        self.ranks = {module: self._find_rank(module) for module in self.owners}
        self.losses: dict[str, tuple[float, float]] = {}
        """Module → squared Frobenius norms of what svd kept or factors missed, and of the exact mean; filled by
        `combine`."""
        if settings.method == "factors":
            self._check_alike()
        largest = max(map(self._summed_rank, self.owners), default=0)
        if settings.rank > largest:
            raise ValueError(f"rank = {settings.rank}, but the members' ranks sum up to {largest}: set method=exact")

    def _summed_rank(self, module: str) -> int:
        return sum(member.shape(module)[2] for member in self.owners[module])

    def _find_rank(self, module: str) -> int:
        rows, columns, rank = self.owners[module][0].shape(module)
        if self.settings.method == "factors":
            return rank
        summed = self._summed_rank(module)
        return summed if self.settings.method == "exact" else min(self.settings.rank, summed, rows, columns)

    def _check_alike(self) -> None:
        for module, owners in self.owners.items():
            scalings = sorted({(member.shape(module)[2], member.scaling(module)) for member in owners})
            if len(owners) < len(self.members) or len(scalings) > 1:
                raise ValueError(
                    f"method factors needs one rank and one scaling in all {len(self.members)} members; "
                    f"{module} has (rank, scaling) {scalings} in {len(owners)} of them: set method=exact or svd"
                )

    def outputs(self) -> Iterator[Output]:
        for module in self.owners:
            yield from self._pair(module)
        for name, owners in self.whole.items():
            yield Output(name, "float32", owners[0].checkpoint.tensors[name].shape, partial(self._mean_blocks, name))

    def _pair(self, module: str) -> Iterator[Output]:
        """A, then B: both are computed when A is written, and B is kept until it is written."""
        owner, rank, kept = self.owners[module][0], self.ranks[module], list["torch.Tensor"]()
        rows, columns, _ = owner.shape(module)

        def compute_both() -> Iterator[torch.Tensor]:
            a, b = self.combine(module)
            kept.append(b.float())
            yield a.float()

        name_a, name_b = owner.pairs[module]
        yield Output(name_a, "float32", (rank, columns), compute_both)
        yield Output(name_b, "float32", (rows, rank), lambda: iter([kept.pop()]))

    def _mean_blocks(self, name: str) -> Iterator[torch.Tensor]:
        owners = self.whole[name]
        for rows in row_blocks(owners[0].checkpoint.tensors[name].shape):
            yield (sum(member.read(name, rows) for member in owners) / len(owners)).float()

    def combine(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, columns] and B [rows, rank] of the result with scaling 1, in fp64; fills `losses`."""
        import torch

        pairs = [member.factors(module) for member in self.owners[module]]
        # Σ s·B·A / n as one product: all B side by side, times all A stacked.
        a = torch.cat([factor for factor, _ in pairs])
        b = torch.cat([factor for _, factor in pairs], dim=1) / len(self.members)
        if self.settings.method == "exact":
            return a, b
        if self.settings.method == "svd":
            small_a, small_b, self.losses[module] = compress(a, b, self.ranks[module])
            return small_a, small_b
        mean_a, mean_b = (sum(factors) / len(pairs) for factors in zip(*pairs, strict=True))
        missed = squared_norm(torch.cat([mean_a, a]), torch.cat([mean_b, -b], dim=1))
        self.losses[module] = missed, squared_norm(a, b)
        return mean_a, mean_b

    def report(self) -> dict[str, Any]:
        """Method, rank and losses for weights.json, after all factors were written."""
        figures: dict[str, Any] = {"method": self.settings.method, "rank": max(self.ranks.values(), default=0)}
        if not self.losses:
            return figures
        svd = self.settings.method == "svd"
        name, share = ("kept_energy", kept_share) if svd else ("relative_error", relative_error)
        matrices = {module.removeprefix(PREFIX): share(*loss) for module, loss in self.losses.items()}
        worst = (min if svd else max)(matrices, key=matrices.__getitem__)
        parts, totals = zip(*self.losses.values(), strict=True)
        overall = share(sum(parts), sum(totals))
        return figures | {name: overall, "worst": {"matrix": worst, name: matrices[worst]}, "matrices": matrices}


def compress(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """The matrix of `rank` nearest to b·a as two factors, and the squared Frobenius norms of it and of b·a.

    The SVD of a small core gives it (Eckart and Young): b = Q·R and aᵀ = P·T, so b·a = Q·(R·Tᵀ)·Pᵀ.
    """
    import torch

    q, r = torch.linalg.qr(b)
    p, t = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(r @ t.T, full_matrices=False)
    root, energy = values[:rank].sqrt(), values.square()
    kept = float(energy[:rank].sum()), float(energy.sum())
    return (root[:, None] * v[:rank]) @ p.T, (q @ u[:, :rank]) * root, kept


def squared_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖b·a‖² (Frobenius) from the triangular factors of both, without computing the product."""
    import torch

    r, t = (torch.linalg.qr(factor, mode="r").R for factor in (b, a.T))
    return float((r @ t.T).square().sum())


def kept_share(kept: float, total: float) -> float:
    """Share of the energy Σσ² that was kept; 1 for a zero matrix."""
    return kept / total if total else 1.0


def relative_error(missed: float, total: float) -> float:
    """Relative Frobenius error; infinite where the exact mean is zero and the result is not."""
    if not missed:
        return 0.0
    return math.sqrt(missed / total) if total else math.inf


# writing ----------------------------------------------------------------------------------------------------


def fill_average(average: Average, folder: Path) -> None:
    from tqdm import tqdm

    first, outputs = average.members[0], list(average.outputs())
    size = sum(output.size for output in outputs)
    with tqdm(total=size, desc="averaging adapters", unit="B", unit_scale=True, mininterval=1.0, delay=3.0) as bar:
        write_safetensors(folder / ADAPTER_WEIGHTS, outputs, bar.update)
    records.write_json(folder / records.ADAPTER, make_config(average))
    copy_text_files(first.folder, folder)
    figures = average.report()
    records.write_json(folder / records.WEIGHTS, describe_average(average.members, figures))
    print(summarize(len(average.members), figures), flush=True)


def make_config(average: Average) -> dict[str, Any]:
    """adapter_config.json with scaling 1: α = rank everywhere, modules of another rank listed in the patterns."""
    configs = [member.config for member in average.members]
    rank = max(average.ranks.values(), default=configs[0]["r"])
    ranks = {module.removeprefix(PREFIX): own for module, own in average.ranks.items()}
    patterns = {f"^{re.escape(module)}": own for module, own in ranks.items() if own != rank}
    changes: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": patterns, "alpha_pattern": patterns}
    chosen = [[config.get(name) for name in MODULE_OPTIONS] for config in configs]
    # PEFT writes sets in any order.
    if len({json.dumps([sorted(value) if isinstance(value, list) else value for value in row]) for row in chosen}) > 1:
        changes |= dict.fromkeys(MODULE_OPTIONS)
        changes["target_modules"] = sorted(ranks)
    return {**configs[0], **changes, "use_rslora": False, "init_lora_weights": True, "inference_mode": True}


def describe_average(members: Sequence[AveragedAdapter], figures: Mapping[str, Any]) -> dict[str, Any]:
    first = members[0]
    base = first.about.get("parents", {}).get("base", first.config.get("base_model_name_or_path"))
    inherited = {name: {member.about.get(name) for member in members} - {None} for name in INHERITED}
    return {
        "stage": "adapter",
        "parents": {"base": base, **{f"member{k}": paths.relative(member.folder) for k, member in enumerate(members)}},
        **{name: values.pop() for name, values in inherited.items() if len(values) == 1},
        "average": dict(figures),
    }


def summarize(count: int, figures: Mapping[str, Any]) -> str:
    line = f"average of {count} adapters: method {figures['method']}, rank {figures['rank']}"
    for name, words in (("kept_energy", "energy kept"), ("relative_error", "relative error")):
        if name in figures:
            worst = figures["worst"]
            line += f", {words} {figures[name]:.2%}, worst {worst[name]:.2%} in {worst['matrix']}"
    return line
