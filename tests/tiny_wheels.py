"""Wheels of a few bytes: a wheel is an archive with a name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_wheel(
    folder: Path, name: str, version: str, tag: str, needs: Sequence[str] = (), more: Mapping[str, str] | None = None
) -> Path:
    """A wheel with one module, that says its version. more: further files in it."""
    path, about = folder / f"{name}-{version}-{tag}.whl", f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {need}" for need in needs),
    ]
    with zipfile.ZipFile(path, "w") as wheel:
        files = {
            **(more or {}),
            f"{name}.py": f"VERSION = {version!r}\n",
            f"{about}/METADATA": "\n".join(metadata) + "\n",
            f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        }
        lines = [f"{file},," for file in (*files, f"{about}/RECORD")]
        for file, text in {**files, f"{about}/RECORD": "\n".join(lines)}.items():
            wheel.writestr(zipfile.ZipInfo(file), text)
    return path
