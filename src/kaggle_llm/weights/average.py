"""Several adapters of one base, such as those of the folds, made into one: the mean of what they add to the base.

Leaves adapter_config.json, adapter_model.safetensors in fp32, the first member's config.json and tokenizer, and
weights.json, which names the members and says what the method lost.
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
from kaggle_llm.weights.adapter import FILE, PREFIX, check_kind, find_scaling, open_tensors
from kaggle_llm.weights.checkpoint import Checkpoint, Output, copy_texts, fill_folder, row_blocks, write_file

if TYPE_CHECKING:
    import torch

PAIRS = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}  # PEFT's endings
COPY = ".base_layer."  # in the name of a base weight that PEFT saves beside LoRA on an embedding
SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
SAME = {  # what members must have in common, and the way out
    "base_model_name_or_path": "average adapters of one base; correct the path where it is the same model",
    "base_sha256": "average adapters of one base",
    "task_type": "average adapters of one task",
    "modules_to_save": "train the members with the same modules_to_save",
    "layer_replication": "train the members with the same layer_replication",
    "id2label": "train the members with the labels in one order",
}
INHERITED = ("base_sha256", "method", "dtype")  # of weights.json, where the members agree: merging asks for them


@dataclass
class AverageSettings:
    method: Literal["exact", "svd", "factors"] = "exact"
    """exact: the members' ranks add up. svd: the nearest matrices of `rank`, the kept energy is reported. factors:
    mean(B)·mean(A), which is not the mean of B·A; its error is reported."""
    rank: int = 0
    """Of what svd leaves; 0 for the other methods."""

    def __post_init__(self) -> None:
        if self.method == "svd" and self.rank < 1:
            raise ValueError(f"rank = {self.rank}: method svd needs a rank of 1 or more")
        if self.method != "svd" and self.rank:
            raise ValueError(f"rank = {self.rank} means nothing to method {self.method}: set method=svd, or rank=0")


@dataclass(frozen=True)
class Member:
    """An adapter folder whose tensors are read when they are asked for."""

    folder: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    """Its weights.json; {} for an adapter that others made."""
    checkpoint: Checkpoint
    pairs: Mapping[str, tuple[str, str]]
    """Adapted module, as the file names it → names of its A and its B."""
    whole: Sequence[str]
    """All other tensors: those trained whole (modules_to_save), and PEFT's copies of base weights (COPY)."""

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
    """`folder` gets one adapter whose delta on every matrix is the mean of the members' s·B·A, zero where one has none.

    What was trained whole is averaged as it is. `folder` is complete or absent afterwards. Ranks and α may differ
    among the members of methods exact and svd. Computed in fp64, matrix by matrix, without the base.
    Raises ValueError for members that do not belong together, for kinds of LoRA whose delta is more than factors,
    for non-finite values, and for broken or pickled files; each names the member.
    """
    settings = settings or AverageSettings()
    members = [read_member(adapter) for adapter in adapters]
    check_members(members)
    if folder.resolve() in [member.folder.resolve() for member in members]:
        raise ValueError(f"{folder} is a member of the average, which would replace it: name another folder")
    fill_folder(folder, partial(fill_average, Average(members, settings)))


# reading and refusing ---------------------------------------------------------------------------------------


def read_member(folder: Path) -> Member:
    if not (folder / records.ADAPTER).is_file():
        raise ValueError(f"{folder} holds no {records.ADAPTER}: only adapters are averaged here, no whole models")
    config = records.read_json(folder / records.ADAPTER)
    check_kind(folder, config)
    if config.get("use_dora"):
        raise ValueError(
            f"adapter {folder} was trained with use_dora: what its magnitudes add depends on the base; merge every "
            f"member into the base and average the merged models instead"
        )
    about = records.read_json(folder / records.WEIGHTS) if (folder / records.WEIGHTS).is_file() else {}
    checkpoint = open_tensors(folder)
    pairs = pair_names(folder, checkpoint)
    paired = {name for pair in pairs.values() for name in pair}
    member = Member(folder, config, about, checkpoint, pairs, sorted(set(checkpoint.tensors) - paired))
    check_factors(member)
    return member


def pair_names(folder: Path, checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Adapted module → names of its A and B; raises ValueError for what belongs to no pair."""
    pairs = {
        name.removesuffix(a): (name, name.removesuffix(a) + b)
        for name in sorted(checkpoint.tensors)
        for a, b in PAIRS.items()
        if name.endswith(a)
    }
    paired = {name for pair in pairs.values() for name in pair}
    missing = sorted(paired - set(checkpoint.tensors))
    if missing:
        raise ValueError(f"adapter {folder} lacks {missing[0]}: save it again")
    strange = sorted(name for name in set(checkpoint.tensors) - paired if "lora_" in name)
    if strange:
        raise ValueError(
            f"adapter {folder} has {strange[0]}, which belongs to no pair of factors: average merged models"
        )
    return pairs


def check_factors(member: Member) -> None:
    """Raises ValueError for factors that are no matrices of the rank that the config says, which scales them."""
    from peft.utils.other import get_pattern_key

    patterns = member.config.get("rank_pattern") or {}
    for module, names in member.pairs.items():
        a, b = (member.checkpoint.tensors[name].shape for name in names)
        rank = patterns.get(get_pattern_key(patterns, module.removeprefix(PREFIX)), member.config["r"])
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            raise ValueError(
                f"adapter {member.folder}: {module} has factors of shape {list(a)} and {list(b)}, {records.ADAPTER} "
                f"says rank {rank}: only matrices are averaged, with the config that they were saved with"
            )


def check_members(members: Sequence[Member]) -> None:
    """Raises ValueError naming two members that do not belong together, and what differs."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} adapter(s) to average: name two or more")
    for name, way_out in SAME.items():
        found: dict[str, Member] = {}
        for member in members:
            facts = list_facts(member)
            if name in facts:
                found.setdefault(json.dumps(facts[name], sort_keys=True), member)
        if len(found) > 1:
            (value, first), (other, second), *_ = found.items()
            raise ValueError(
                f"adapters {first.folder} and {second.folder} differ in {name}, {value} and {other}: {way_out}"
            )
    check_shapes(members)


def list_facts(member: Member) -> dict[str, Any]:
    """The values of SAME; those that a member does not know are absent."""
    facts = {name: member.config.get(name) for name in ("base_model_name_or_path", "task_type", "layer_replication")}
    facts["modules_to_save"] = sorted(member.config.get("modules_to_save") or [])
    model = member.folder / "config.json"
    known = {
        "base_sha256": member.about.get("base_sha256"),
        "id2label": records.read_json(model).get("id2label") if model.is_file() else None,
    }
    return facts | {name: value for name, value in known.items() if value is not None}


def check_shapes(members: Sequence[Member]) -> None:
    """A matrix that a member does not adapt is zero there; a tensor trained whole must be in all of them."""
    first, known = members[0], dict[str, tuple[tuple[int, ...], Member]]()
    for member in members:
        lacking = sorted(name for name in set(member.whole) ^ set(first.whole) if COPY not in name)
        if lacking:
            raise ValueError(
                f"{lacking[0]} was trained whole in only one of {first.folder} and {member.folder}: "
                f"train the members with the same modules_to_save"
            )
        shapes: dict[str, tuple[int, ...]] = {name: member.checkpoint.tensors[name].shape for name in member.whole}
        shapes |= {module: member.shape(module)[:2] for module in member.pairs}
        for name, shape in shapes.items():
            other, owner = known.setdefault(name, (shape, member))
            if shape != other:
                raise ValueError(
                    f"{name} is {list(other)} in {owner.folder} and {list(shape)} in {member.folder}: "
                    f"average adapters of one base and one set of labels"
                )


# averaging --------------------------------------------------------------------------------------------------


class Average:
    """The mean of members, one module at a time."""

    def __init__(self, members: Sequence[Member], settings: AverageSettings) -> None:
        self.members, self.settings = members, settings
        self.owners: dict[str, list[Member]] = {}
        """Module → the members that adapt it."""
        self.whole: dict[str, list[Member]] = {}
        """Tensor → the members that have it: all of them, or for a copy of the base's some."""
        for member in members:
            for module in member.pairs:
                self.owners.setdefault(module, []).append(member)
            for name in member.whole:
                self.whole.setdefault(name, []).append(member)
        self.ranks = {module: self._find_rank(module) for module in self.owners}
        self.losses: dict[str, tuple[float, float]] = {}
        """Module → squared Frobenius norms of what svd kept or factors missed, and of the exact mean; fills up while
        factors are made."""
        if settings.method == "factors":
            self._check_alike()
        summed = max((sum(member.shape(name)[2] for member in some) for name, some in self.owners.items()), default=0)
        if settings.rank > summed:
            raise ValueError(
                f"rank = {settings.rank}, but the ranks of the members sum up to {summed}: set method=exact"
            )

    def _find_rank(self, module: str) -> int:
        rows, columns, rank = self.owners[module][0].shape(module)
        if self.settings.method == "factors":
            return rank
        summed = sum(member.shape(module)[2] for member in self.owners[module])
        return summed if self.settings.method == "exact" else min(self.settings.rank, summed, rows, columns)

    def _check_alike(self) -> None:
        for module, owners in self.owners.items():
            kinds = sorted({(member.shape(module)[2], member.scaling(module)) for member in owners})
            if len(owners) < len(self.members) or len(kinds) > 1:
                raise ValueError(
                    f"method factors needs one rank and one scaling in all {len(self.members)} members; "
                    f"{module} has (rank, scaling) {kinds} in {len(owners)} of them: set method=exact or svd"
                )

    def outputs(self) -> Iterator[Output]:
        for module in self.owners:
            yield from self._pair(module)
        for name, owners in self.whole.items():
            yield Output(name, "float32", owners[0].checkpoint.tensors[name].shape, partial(self._mean_blocks, name))

    def _pair(self, module: str) -> Iterator[Output]:
        """A, then B, which is kept until it is asked for."""
        owner, rank, kept = self.owners[module][0], self.ranks[module], list["torch.Tensor"]()
        rows, columns, _ = owner.shape(module)

        def first() -> Iterator[torch.Tensor]:
            a, b = self.combine(module)
            kept.append(b.float())
            yield a.float()

        a, b = owner.pairs[module]
        yield Output(a, "float32", (rank, columns), first)
        yield Output(b, "float32", (rows, rank), lambda: iter([kept.pop()]))

    def _mean_blocks(self, name: str) -> Iterator[torch.Tensor]:
        owners = self.whole[name]
        for rows in row_blocks(owners[0].checkpoint.tensors[name].shape):
            yield (sum(member.read(name, rows) for member in owners) / len(owners)).float()

    def combine(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A [rank, columns] and B [rows, rank] of the result with scaling 1, fp64; notes what is lost."""
        import torch

        pairs = [member.factors(module) for member in self.owners[module]]
        # Σ s·B·A / n is one product: the B side by side, times the A one below the other.
        a = torch.cat([factor for factor, _ in pairs])
        b = torch.cat([factor for _, factor in pairs], dim=1) / len(self.members)
        if self.settings.method == "exact":
            return a, b
        if self.settings.method == "svd":
            small_a, small_b, self.losses[module] = compress(a, b, self.ranks[module])
            return small_a, small_b
        mean_a, mean_b = (sum(factors) / len(pairs) for factors in zip(*pairs, strict=True))
        missed = square(torch.cat([mean_a, a]), torch.cat([mean_b, -b], dim=1))
        self.losses[module] = missed, square(a, b)
        return mean_a, mean_b

    def report(self) -> dict[str, Any]:
        """What weights.json says of the method, after all factors were made."""
        figures: dict[str, Any] = {"method": self.settings.method, "rank": max(self.ranks.values(), default=0)}
        if not self.losses:
            return figures
        svd = self.settings.method == "svd"
        name, share = ("kept_energy", keep) if svd else ("relative_error", miss)
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


def square(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖b·a‖² (Frobenius) from the triangles of both factors, never from the product."""
    import torch

    r, t = (torch.linalg.qr(factor, mode="r").R for factor in (b, a.T))
    return float((r @ t.T).square().sum())


def keep(kept: float, total: float) -> float:
    """Share of the energy Σσ²; a zero matrix loses nothing of it."""
    return kept / total if total else 1.0


def miss(missed: float, total: float) -> float:
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
        write_file(folder / FILE, outputs, bar.update)
    records.write_json(folder / records.ADAPTER, make_config(average))
    copy_texts(first.folder, folder)
    figures = average.report()
    records.write_json(folder / records.WEIGHTS, describe_average(average.members, figures))
    print(say_average(len(average.members), figures), flush=True)


def make_config(average: Average) -> dict[str, Any]:
    """adapter_config.json with scaling 1 everywhere: α is the rank; modules of another rank are named."""
    configs = [member.config for member in average.members]
    rank = max(average.ranks.values(), default=configs[0]["r"])
    others = {f"^{re.escape(module.removeprefix(PREFIX))}": own for module, own in average.ranks.items() if own != rank}
    changes: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    if len({json.dumps([sort_list(config.get(name)) for name in SELECTION]) for config in configs}) > 1:
        changes |= dict.fromkeys(SELECTION)
        changes["target_modules"] = sorted(module.removeprefix(PREFIX) for module in average.owners)
    return {**configs[0], **changes, "use_rslora": False, "init_lora_weights": True, "inference_mode": True}


def sort_list(value: Any) -> Any:
    """PEFT writes sets down in any order."""
    return sorted(value) if isinstance(value, list) else value


def describe_average(members: Sequence[Member], figures: Mapping[str, Any]) -> dict[str, Any]:
    first = members[0]
    base = first.about.get("parents", {}).get("base", first.config.get("base_model_name_or_path"))
    inherited = {name: {member.about.get(name) for member in members} - {None} for name in INHERITED}
    return {
        "stage": "adapter",
        "parents": {"base": base, **{f"member{k}": paths.relative(member.folder) for k, member in enumerate(members)}},
        **{name: values.pop() for name, values in inherited.items() if len(values) == 1},
        "average": dict(figures),
    }


def say_average(count: int, figures: Mapping[str, Any]) -> str:
    said = f"average of {count} adapters: method {figures['method']}, rank {figures['rank']}"
    for name, words in (("kept_energy", "energy kept"), ("relative_error", "relative error")):
        if name in figures:
            worst = figures["worst"]
            said += f", {words} {figures[name]:.2%}, worst {worst[name]:.2%} in {worst['matrix']}"
    return said
