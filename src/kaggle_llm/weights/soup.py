"""Several checkpoints of one architecture merged into one: model soup, SLERP, TIES, DARE; the rest is mergekit's.

Leaves an ordinary model folder: shards as the first member's, its config, tokenizer, chat template and generation
config, and weights.json, which names the parents. Folders that mergekit made are members like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.engines.quantised import read_quantisation
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.weights import arithmetic
from kaggle_llm.weights.checkpoint import Checkpoint, is_float
from kaggle_llm.weights.shard_writer import (
    Output,
    check_weights_finite,
    copy_tensor,
    copy_text_files,
    row_blocks,
    to_bytes,
    write_shards,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

WITH_BASE = ("ties", "dare")
# Keys of config.json that do not describe the model: the first member's values stay.
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass
class SoupSettings:
    method: Literal["linear", "slerp", "ties", "dare"] = "linear"
    weights: list[float] = field(default_factory=list)
    """One per member; empty: all equal. linear divides by their sum, ties by the sum of the members that agree in sign;
    dare does not divide, slerp has t instead."""
    t: float = 0.5
    """Slerp: 0 is the first member, 1 the second."""
    density: float = 0.5
    """ties, dare: the share of a member's changes that is kept."""
    seed: int = 0
    """dare: of the random choice."""
    dtype: Literal["members", "float32", "float16", "bfloat16"] = "members"
    """The dtype of the merged weights; members: as the members store them."""


def merge_checkpoints(members: Sequence[Path], folder: Path, settings: SoupSettings, base: Path | None = None) -> None:
    """One model of several, computed in fp32 and rounded once. ties and dare mix what members change in `base`.

    `folder` is complete or absent afterwards. Raises ValueError and FileNotFoundError, naming the member, where
    members differ in architecture, tokenizer, chat template, tensors or dtype, are quantised, broken or not finite.
    """
    check_settings(settings, members, base)
    parents = [*members, *([base] if base else [])]
    if folder.resolve() in [parent.resolve() for parent in parents]:
        raise ValueError(f"{folder} is one of the merged models and would be overwritten: name another folder")
    records.make_folder(folder, partial(fill_soup, members, settings, base))


def fill_soup(members: Sequence[Path], settings: SoupSettings, base: Path | None, folder: Path) -> None:
    """Write the merged model into an existing folder."""
    check_configs(members, base)
    check_tokenizers(members, base)
    soup = Soup(members, settings, base)
    soup.check()
    write_shards(folder, soup.shards())
    copy_text_files(members[0], folder)
    if settings.dtype != "members":
        config = records.read_json(folder / "config.json")
        config.pop("torch_dtype", None)
        records.write_json(folder / "config.json", config | {"dtype": settings.dtype})
    parents = {f"member{i}": paths.relative(member) for i, member in enumerate(members)}
    parents |= {"base": paths.relative(base)} if base else {}
    records.write_json(folder / records.WEIGHTS, {"stage": "merged", "parents": parents, "soup": asdict(settings)})


class Soup:
    """Computes the tensors of the merged model."""

    def __init__(self, members: Sequence[Path], settings: SoupSettings, base: Path | None) -> None:
        self.members = [Checkpoint(member) for member in members]
        self.base = Checkpoint(base) if base else None
        self.settings = settings
        weights = settings.weights or [1 / len(members)] * len(members)
        self.portions = list(zip(self.members, weights, strict=True))

    def check(self) -> None:
        """Raises ValueError where members or base differ in the names, shapes or dtypes of their tensors."""
        first = self.members[0]
        for member in self.members[1:]:
            check_names(first, member)
        for name, stored in first.tensors.items():
            if not is_float(stored.dtype):
                self._check_equal(name)
                continue
            dtypes = {member.tensors[name].dtype: member.folder for member in self.members}
            if len(dtypes) > 1 and self.settings.dtype == "members":
                listed = " and ".join(f"{dtype} in {folder}" for dtype, folder in dtypes.items())
                raise ValueError(f"{name} is {listed}: choose the merged model's dtype, such as --dtype float32")
        if self.base:
            check_names(first, self.base)

    def _check_equal(self, name: str) -> None:
        """Raises ValueError where a tensor of integers, which cannot be mixed, differs between members."""
        import torch

        first = self.members[0]
        expected = first.read(name).flatten().view(torch.uint8)
        for member in self.members[1:]:
            if not torch.equal(member.read(name).flatten().view(torch.uint8), expected):
                dtype = first.tensors[name].dtype
                raise ValueError(
                    f"{name} is {dtype}, which cannot be mixed, and differs in {first.folder} and {member.folder}: "
                    f"merge models in which it is equal, or whose weights are not quantised"
                )

    def shards(self) -> dict[str, list[Output]]:
        first = self.members[0]
        return {
            file: [
                self._mixed(name) if is_float(first.tensors[name].dtype) else copy_tensor(first, name) for name in names
            ]
            for file, names in first.shards.items()
        }

    def _mixed(self, name: str) -> Output:
        import torch

        stored = self.members[0].tensors[name]
        dtype = stored.dtype if self.settings.dtype == "members" else self.settings.dtype

        def blocks() -> Iterator[torch.Tensor]:
            for block in self._mix(name, stored.shape):
                yield block.to(getattr(torch, dtype))

        return Output(name, dtype, stored.shape, blocks)

    def _order(self, name: str) -> list[tuple[Checkpoint, float]]:
        """Members with their weights; for dare sorted by content, so that masks do not depend on the members' order."""
        if self.settings.method != "dare":
            return self.portions

        def content(portion: tuple[Checkpoint, float]) -> tuple[bytes, float]:
            return hashlib.sha256(to_bytes(portion[0].read(name))).digest(), portion[1]

        return sorted(self.portions, key=content)

    def _mix(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Blocks of rows of the merged tensor, fp32."""
        members, weights = zip(*self._order(name), strict=True)
        parents = [*members, self.base] if self.base else list(members)
        tensors = [parent.read(name) for parent in parents]
        mix = choose_mixer(self.settings, name, tensors, weights)
        for rows in row_blocks(shape):
            blocks = [tensor[rows] if shape else tensor for tensor in tensors]
            for parent, block in zip(parents, blocks, strict=True):
                check_weights_finite(block, f"{parent.folder}: {name}")
            yield mix(blocks)


def choose_mixer(
    settings: SoupSettings, name: str, tensors: Sequence[torch.Tensor], weights: Sequence[float]
) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    """A function from the members' blocks of one tensor, the base's last, to the merged block."""
    if settings.method == "linear":
        return lambda blocks: arithmetic.linear(blocks, weights)
    if settings.method == "slerp":
        factors = arithmetic.find_slerp_weights(tensors[0], tensors[1], settings.t)
        return lambda blocks: arithmetic.combine(blocks, factors)
    *members, base = tensors
    if settings.method == "ties":
        cuts = [arithmetic.find_cut(base, member, settings.density) for member in members]
        return lambda blocks: arithmetic.elect(blocks[-1], trim(cuts, blocks), weights)
    generator = seed_generator(settings.seed, name)  # dare
    return lambda blocks: arithmetic.dare(blocks[-1], blocks[:-1], weights, settings.density, generator)


def trim(cuts: Sequence[arithmetic.Cut], blocks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each member's trimmed changes; the last block is the base's."""
    return [cut.trim(blocks[-1], block) for cut, block in zip(cuts, blocks[:-1], strict=True)]


def seed_generator(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on the seed and the tensor's name alone."""
    import torch

    return torch.Generator().manual_seed(int(records.hash_json([seed, name])[:15], 16))


# what cannot be merged --------------------------------------------------------------------------------------


def check_settings(settings: SoupSettings, members: Sequence[Path], base: Path | None) -> None:
    """Raises ValueError for settings that do not fit each other or the number of members."""
    method, weights, count = settings.method, settings.weights, len(members)
    if count < 2:
        raise ValueError(f"{count} members {[str(member) for member in members]}: name two checkpoints or more")
    if method == "slerp" and (count != 2 or weights):
        raise ValueError(f"slerp takes two members and --t, no weights: got {count} members and weights {weights}")
    if (method in WITH_BASE) != (base is not None):
        raise ValueError(
            f"method = {method}, base = {base}: {' and '.join(WITH_BASE)} need the base model, others none"
        )
    if weights and len(weights) != count:
        raise ValueError(f"weights = {weights}: {len(weights)} for {count} members; give one for each")
    if weights and (not all(map(math.isfinite, weights)) or abs(sum(weights)) < 1e-8):
        raise ValueError(f"weights = {weights}: give numbers whose sum is not 0")
    if not 0 < settings.density <= 1:
        raise ValueError(f"density = {settings.density}: the share that is kept, above 0 and up to 1")
    if not 0 <= settings.t <= 1:
        raise ValueError(f"t = {settings.t}: must lie between 0 (the first member) and 1 (the second)")


def check_configs(members: Sequence[Path], base: Path | None) -> None:
    """Raises ValueError where a parent is quantised or of another architecture than the first member."""
    first, *others = members
    expected = read_config(first)
    for parent in [*others, *([base] if base else [])]:
        config = read_config(parent)
        different = [key for key in sorted({*expected, *config}) if expected.get(key) != config.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"{parent} has {key} = {config.get(key)!r} in its config.json, {first} {expected.get(key)!r} "
                f"(all that differs: {different}): only models of one architecture can be merged"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of the model in config.json, with its class's defaults: "rope_parameters.rope_theta" → value."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give model folders; an adapter is merged into its base first"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    if read_quantisation(folder):
        raise ValueError(f"{folder} is quantised: merge first, quantise the merged model")
    return {key: value for key, value in flatten(config).items() if is_of_the_model(key)}


def is_of_the_model(key: str) -> bool:
    """Whether a key describes the model. Token ids do not: tokenizers are compared instead."""
    name = key.split(".")[-1]
    return name not in NOT_THE_MODEL and not name.endswith("_token_id")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_tokenizers(members: Sequence[Path], base: Path | None) -> None:
    """Raises ValueError where parents have other vocabularies, or members other tokenizers or chat templates."""
    first, *others = members
    expected = load_tokenizer(first)
    for parent in [*others, *([base] if base else [])]:
        tokenizer = load_tokenizer(parent)
        different = sorted({*expected.get_vocab().items()} ^ {*tokenizer.get_vocab().items()})
        if different:
            token, number = different[0]
            raise ValueError(
                f"{parent} has another vocabulary than {first}: {len(tokenizer)} and {len(expected)} tokens, {token!r} "
                f"is {number} in one of them only; merge models of one tokenizer (or with mergekit's tokenizer option)"
            )
        if parent != base and describe_tokenizer(tokenizer) != describe_tokenizer(expected):
            raise ValueError(f"{parent} tokenises text differently from {first}: make their tokenizer.json the same")
        if parent != base and tokenizer.chat_template != expected.chat_template:
            raise ValueError(f"{parent} has another chat template than {first}: make them the same")


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """tokenizer.json without the truncation and padding that it was last used with; {} for a slow tokenizer."""
    if not tokenizer.is_fast:
        return {}
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return described | {"truncation": None, "padding": None}


def check_names(first: Checkpoint, other: Checkpoint) -> None:
    """Raises ValueError where the two differ in names or shapes of tensors."""
    for have, lack in ((first, other), (other, first)):
        missing = sorted(set(have.tensors) - set(lack.tensors))
        if missing:
            raise ValueError(f"{lack.folder} has no {missing[0]}, {have.folder} has it ({len(missing)} such)")
    for name, stored in first.tensors.items():
        shape = other.tensors[name].shape
        if shape != stored.shape:
            raise ValueError(f"{name} is {list(shape)} in {other.folder} and {list(stored.shape)} in {first.folder}")
