"""dataset-metadata.json and kernel-metadata.json, and the rules of Kaggle's client and server.

All are checked before the upload: the server would refuse a field half an hour later, or change it silently. A message
names the field, the value and the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.base.accelerators import ACCELERATORS, Accelerator, find_accelerator

DATASET, KERNEL = "dataset-metadata.json", "kernel-metadata.json"
MOST_ENTRIES = 50  # top-level files of a dataset
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DATASET_SOURCE = re.compile(r"[^/\s]+/[a-z0-9]+(-[a-z0-9]+)*")
MODEL_SOURCE = re.compile(r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/\d+")
IMAGE = re.compile(r"[\w./-]+@sha256:[0-9a-f]{64}")
FIXED_FIELDS = {  # all written out: the CLI turns the internet on where the field is missing
    "language": "python",
    "kernel_type": "notebook",
    "is_private": True,
    "enable_tpu": False,
    "enable_internet": False,
    "docker_image_pinning_type": "original",
}
LICENCES = ("other", "apache-2.0", "copyright-authors", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0")

Problem = tuple[str, Any, str]  # field, value, rule


def describe_dataset(slug: str, owner: str = "") -> dict[str, Any]:
    """dataset-metadata.json; the CLI makes datasets private. The owner is added at push."""
    return {"title": slug, "id": f"{owner}/{slug}" if owner else slug, "licenses": [{"name": "other"}]}


def describe_kernel(
    slug: str, owner: str, runtime: Mapping[str, Any], competition: str, datasets: list[str], models: list[str]
) -> dict[str, Any]:
    """kernel-metadata.json of a private notebook without internet on the runtime's image and accelerator.

    runtime: asdict of a Runtime; datasets: slugs of the owner's; models: Kaggle model sources.
    """
    return {
        "id": f"{owner}/{slug}",
        "title": slug,
        "code_file": "notebook.ipynb",
        **FIXED_FIELDS,
        **describe_shape(find_accelerator(runtime["machine"]["accelerator"])),
        "docker_image": runtime["image"]["ref"],
        "competition_sources": [competition],
        "dataset_sources": [f"{owner}/{name}" for name in sorted(datasets)],
        "kernel_sources": [],
        "model_sources": sorted(models),
    }


def describe_shape(accelerator: Accelerator) -> dict[str, Any]:
    """The fields that ask for the machine; a CPU has no shape."""
    return {"enable_gpu": accelerator.count > 0, "machine_shape": accelerator.name if accelerator.count else ""}


def check_dataset_metadata(folder: Path) -> None:
    """Raises ValueError with every rule that a dataset's folder breaks."""
    raise_problems(folder / DATASET, list(find_dataset_problems(records.read_json(folder / DATASET), folder)))


def check_kernel_metadata(folder: Path) -> None:
    """Raises ValueError with every rule that a kernel's folder breaks."""
    raise_problems(folder / KERNEL, list(find_kernel_problems(records.read_json(folder / KERNEL), folder)))


def raise_problems(path: Path, problems: list[Problem]) -> None:
    if problems:
        message = "; ".join(f"{field} = {value!r}: {rule}" for field, value, rule in problems)
        raise ValueError(f"{path.parent.name}/{path.name}: {message}")


def find_dataset_problems(metadata: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    owner, _, slug = str(metadata.get("id", "")).partition("/")
    title, licences, subtitle = metadata.get("title", ""), metadata.get("licenses", []), metadata.get("subtitle")
    if not (owner and SLUG.fullmatch(slug) and 6 <= len(slug) <= 50):
        yield "id", metadata.get("id"), "owner/slug, the slug of 6 to 50 lower-case letters, digits and hyphens"
    if not 6 <= len(title) <= 50:
        yield "title", title, "6 to 50 characters"
    names = [licence.get("name") for licence in licences]
    if len(names) != 1 or names[0] not in LICENCES:
        yield "licenses", names, f"exactly one of {', '.join(LICENCES)}"
    if subtitle and not 20 <= len(subtitle) <= 80:
        yield "subtitle", subtitle, "20 to 80 characters, or none"
    entries = [path for path in folder.iterdir() if path.name != DATASET]
    if not 1 <= len(entries) <= MOST_ENTRIES:
        yield "files", len(entries), f"1 to {MOST_ENTRIES} at the top level: put the others into a folder"


def find_kernel_problems(metadata: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    owner, _, slug = str(metadata.get("id", "")).partition("/")
    title = metadata.get("title", "")
    if not (owner and SLUG.fullmatch(slug) and 5 <= len(slug) <= 50):
        yield "id", metadata.get("id"), "owner/slug without a version, the slug of 5 to 50 characters"
    if len(title) < 5 or slugify(title) != slug:
        yield "title", title, f"5 characters or more that become the slug {slug!r}: the server names the kernel by it"
    if not (folder / str(metadata.get("code_file"))).is_file():
        yield "code_file", metadata.get("code_file"), "a file beside the metadata"
    yield from find_wrong_values(metadata)
    for field, pattern, rule in (
        ("dataset_sources", DATASET_SOURCE, "owner/slug each"),
        ("model_sources", MODEL_SOURCE, "owner/model/framework/variation/version each, the version a number"),
        ("competition_sources", SLUG, "the competition's slug each"),
    ):
        for value in metadata.get(field, []):
            if not pattern.fullmatch(value):
                yield field, value, rule
    if not metadata.get("competition_sources"):
        yield "competition_sources", [], "the competition has to be attached: its test set is mounted by it"


def find_wrong_values(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """Fields that are the same in every kernel, the accelerator, and the image."""
    for field, value in FIXED_FIELDS.items():
        if metadata.get(field) != value:
            yield field, metadata.get(field), f"{value!r}, written out"
    shape, gpu = metadata.get("machine_shape"), metadata.get("enable_gpu")
    shapes = [describe_shape(accelerator)["machine_shape"] for accelerator in ACCELERATORS.values()]
    if shape not in shapes:
        yield "machine_shape", shape, f"one of {', '.join(map(repr, shapes))}, written out"
    elif gpu is not bool(shape):
        yield "enable_gpu", gpu, f"{bool(shape)} for machine_shape = {shape!r}, written out"
    if not IMAGE.fullmatch(str(metadata.get("docker_image"))):
        yield "docker_image", metadata.get("docker_image"), "an image by its digest: image@sha256:…"


def slugify(title: str) -> str:
    """The slug that the CLI makes of a title in plain letters: lower case, everything else one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
