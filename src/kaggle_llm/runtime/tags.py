"""The wheels that an image can install, by the tags of its Python and its glibc."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.runtime.pins import Image

if TYPE_CHECKING:
    from packaging.tags import Tag

LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}  # names of glibc 2.17, 2.12 and 2.5


def list_platforms(glibc: str) -> list[str]:
    """Platform tags of a Linux on x86 with this glibc, the newest first."""
    major, minor = map(int, glibc.split("."))
    platforms = []
    for older in range(minor, 4, -1):
        platforms.append(f"manylinux_{major}_{older}_x86_64")
        platforms += [f"{LEGACY[older]}_x86_64"] if older in LEGACY else []
    return [*platforms, "linux_x86_64"]


@cache
def _rank_tags(python: str, glibc: str) -> dict[Tag, int]:
    from packaging.tags import compatible_tags, cpython_tags

    version, platforms = [int(part) for part in python.split(".")], list_platforms(glibc)
    name = f"cp{python.replace('.', '')}"
    tags = [*cpython_tags(version, [name], platforms), *compatible_tags(version, name, platforms)]
    return {tag: rank for rank, tag in enumerate(tags)}


def choose_wheel(wheels: Iterable[Path], image: Image) -> Path:
    """The wheel that suits the image best, of several of one version. Raises ValueError where none fits."""
    from packaging.utils import parse_wheel_filename

    ranks = _rank_tags(image.python, image.glibc)
    tags_of = {path: parse_wheel_filename(path.name)[3] for path in sorted(wheels)}
    fitting = {path: [ranks[tag] for tag in tags if tag in ranks] for path, tags in tags_of.items()}
    if not any(fitting.values()):
        path, tags = next(iter(tags_of.items()))
        name = f"cp{image.python.replace('.', '')}"
        raise ValueError(
            f"wheel {path.name} has the tag {', '.join(sorted(map(str, tags)))}, which this image does not take: "
            f"it takes {name}, abi3 of {name} and older, and none, for any or for manylinux up to glibc {image.glibc}"
        )
    return min((path for path in tags_of if fitting[path]), key=lambda path: min(fitting[path]))
