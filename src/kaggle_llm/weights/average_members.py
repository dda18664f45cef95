"""The members of an average of adapters: opened, refused where they do not belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.weights.adapter import BASE_COPY, Adapter, open_adapter

MUST_AGREE = {  # what members must have in common → the way out
    "base_model_name_or_path": "average adapters of one base; correct the path where it is the same model",
    "base_sha256": "average adapters of one base",
    "task_type": "average adapters of one task",
    "modules_to_save": "train the members with the same modules_to_save",
    "layer_replication": "train the members with the same layer_replication",
    "id2label": "train the members with the labels in the same order",
}


def open_member(folder: Path) -> Adapter:
    if not (folder / records.ADAPTER).is_file():
        raise ValueError(f"{folder} holds no {records.ADAPTER}: only adapters can be averaged here, no whole models")
    member = open_adapter(folder)
    if member.config.get("use_dora"):
        raise ValueError(
            f"adapter {folder} was trained with use_dora: its magnitudes depend on the base; merge every "
            f"member into the base and average the merged models instead"
        )
    return member


def check_belong_together(members: Sequence[Adapter]) -> None:
    """Raises ValueError naming two members that cannot be averaged, and what differs."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} adapter(s) to average: name two or more")
    for name, way_out in MUST_AGREE.items():
        values: dict[str, Adapter] = {}
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


def list_facts(member: Adapter) -> dict[str, Any]:
    """The member's values of MUST_AGREE, without those that are unknown."""
    facts = {name: member.config.get(name) for name in ("base_model_name_or_path", "task_type", "layer_replication")}
    facts["modules_to_save"] = sorted(member.config.get("modules_to_save") or [])
    optional = {
        "base_sha256": member.about.get("base_sha256"),
        "id2label": records.read_optional(member.folder / "config.json", {}).get("id2label"),
    }
    return facts | {name: value for name, value in optional.items() if value is not None}


def check_shapes(members: Sequence[Adapter]) -> None:
    """Raises ValueError where shapes differ, or a tensor was trained whole by some of the members only."""
    first, seen = members[0], dict[str, tuple[tuple[int, ...], Adapter]]()
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
