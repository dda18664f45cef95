"""dataset-metadata.json and kernel-metadata.json, and the rules of Kaggle's client and server.

What names, sources and the image make of it is checked before the upload: the server would refuse a field half an hour
later, or change it silently. A message names the field, the value and the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.base.accelerators import find_accelerator

DATASET, KERNEL = "dataset-metadata.json", "kernel-metadata.json"
MOST_ENTRIES = 50  # top-level files of a dataset
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DATASET_SOURCE = re.compile(r"[^/\s]+/[a-z0-9]+(-[a-z0-9]+)*")
MODEL_SOURCE = re.compile(r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/\d+")
IMAGE = re.compile(r"[\w./-]+@sha256:[0-9a-f]{64}")
Problem = tuple[str, Any, str]  # field, value, rule


def describe_dataset(slug: str, owner: str = "") -> dict[str, Any]:
    """dataset-metadata.json; the CLI makes datasets private. The owner is added at push."""
    return {"title": slug, "id": f"{owner}/{slug}" if owner else slug, "licenses": [{"name": "other"}]}


def describe_kernel(
    slug: str, owner: str, runtime: Mapping[str, Any], competition: str, datasets: list[str], models: list[str]
) -> dict[str, Any]:
    """kernel-metadata.json of a private notebook without internet on the runtime's image and accelerator.

    runtime: asdict of a Runtime; datasets: slugs of the owner's; models: Kaggle model sources. A CPU has no shape. All
    fields are written out: the CLI turns the internet on where that one is missing.
    """
    accelerator = find_accelerator(runtime["accelerator"])
    return {
        "id": f"{owner}/{slug}",
        "title": slug,
        "code_file": "notebook.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_tpu": False,
        "enable_internet": False,
        "docker_image_pinning_type": "original",
        "enable_gpu": accelerator.count > 0,
        "machine_shape": accelerator.name if accelerator.count else "",
        "docker_image": runtime["image"]["ref"],
        "competition_sources": [competition],
        "dataset_sources": [f"{owner}/{name}" for name in sorted(datasets)],
        "kernel_sources": [],
        "model_sources": sorted(models),
    }


def check_dataset_metadata(folder: Path) -> None:
    """Raises ValueError with every rule that a dataset's folder breaks."""
    raise_problems(folder / DATASET, list(find_dataset_problems(records.read_json(folder / DATASET), folder)))


def check_kernel_metadata(folder: Path) -> None:
    """Raises ValueError with every rule that a kernel's folder breaks."""
    raise_problems(folder / KERNEL, list(find_kernel_problems(records.read_json(folder / KERNEL))))


def raise_problems(path: Path, problems: list[Problem]) -> None:
    if problems:
        message = "; ".join(f"{field} = {value!r}: {rule}" for field, value, rule in problems)
        raise ValueError(f"{path.parent.name}/{path.name}: {message}")


def find_dataset_problems(metadata: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    owner, _, slug = metadata["id"].partition("/")
    if not (owner and SLUG.fullmatch(slug) and 6 <= len(slug) <= 50):
        yield "id", metadata["id"], "owner/slug, the slug of 6 to 50 lower-case letters, digits and hyphens"
    entries = [path for path in folder.iterdir() if path.name != DATASET]
    if not 1 <= len(entries) <= MOST_ENTRIES:
        yield "files", len(entries), f"1 to {MOST_ENTRIES} at the top level: put the others into a folder"


def find_kernel_problems(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    owner, _, slug = metadata["id"].partition("/")
    if not (owner and SLUG.fullmatch(slug) and 5 <= len(slug) <= 50):
        yield "id", metadata["id"], "owner/slug without a version, the slug of 5 to 50 characters"
    if not IMAGE.fullmatch(str(metadata["docker_image"])):
        yield "docker_image", metadata["docker_image"], "an image by its digest: image@sha256:…"
    for field, pattern, rule in (
        ("dataset_sources", DATASET_SOURCE, "owner/slug each"),
        ("model_sources", MODEL_SOURCE, "owner/model/framework/variation/version each, the version a number"),
        ("competition_sources", SLUG, "the competition's slug each"),
    ):
        for value in metadata[field]:
            if not pattern.fullmatch(value):
                yield field, value, rule


def slugify(title: str) -> str:
    """The slug that the CLI makes of a title in plain letters: lower case, everything else one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
