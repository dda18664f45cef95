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
from kaggle_llm.weights.adapter import ADAPTER_WEIGHTS, Adapter, find_scaling
from kaggle_llm.weights.average_members import check_belong_together, open_member
from kaggle_llm.weights.shard_writer import Output, copy_text_files, row_blocks, write_safetensors

if TYPE_CHECKING:
    import torch

MODULE_OPTIONS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
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


def average_adapters(adapters: Sequence[Path], folder: Path, settings: AverageSettings | None = None) -> None:
    """Write into `folder` one adapter whose delta on every matrix is the mean of the members' s·B·A.

    A matrix that a member does not adapt counts as zero; tensors trained whole are averaged as they are. `folder` is
    complete or absent afterwards. With methods exact and svd ranks and α may differ. Computed in fp64, without the
    base. Raises ValueError naming the member for members of different bases or tasks, variants of LoRA whose delta is
    more than factors, non-finite values, and broken or pickled files.
    """
    settings = settings or AverageSettings()
    members = [open_member(adapter) for adapter in adapters]
    check_belong_together(members)
    if folder.resolve() in [member.folder.resolve() for member in members]:
        raise ValueError(f"{folder} is a member of the average, which would replace it: name another folder")
    records.make_folder(folder, partial(fill_average, Average(members, settings)))


# averaging --------------------------------------------------------------------------------------------------


class Average:
    """The mean of the members, computed one module at a time."""

    def __init__(self, members: Sequence[Adapter], settings: AverageSettings) -> None:
        self.members, self.settings = members, settings
        self.owners: dict[str, list[Adapter]] = {}
        """Module → the members that adapt it."""
        self.whole: dict[str, list[Adapter]] = {}
        """Tensor that is no LoRA factor → the members that have it (all, except for copies of base weights)."""
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
            scalings = sorted({(member.shape(module)[2], find_scaling(member.config, module)) for member in owners})
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

        pairs = [member.read_pair(module) for member in self.owners[module]]
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
        matrices = {module: share(*loss) for module, loss in self.losses.items()}
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
    patterns = {f"^{re.escape(module)}": own for module, own in average.ranks.items() if own != rank}
    changes: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": patterns, "alpha_pattern": patterns}
    chosen = [[config.get(name) for name in MODULE_OPTIONS] for config in configs]
    # PEFT writes sets in any order.
    if len({json.dumps([sorted(value) if isinstance(value, list) else value for value in row]) for row in chosen}) > 1:
        changes |= dict.fromkeys(MODULE_OPTIONS)
        changes["target_modules"] = sorted(average.ranks)
    return {**configs[0], **changes, "use_rslora": False, "init_lora_weights": True, "inference_mode": True}


def describe_average(members: Sequence[Adapter], figures: Mapping[str, Any]) -> dict[str, Any]:
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
