"""`kaggle-llm wheels RUNTIME`: make output/wheels/<runtime>/, the dataset of wheels that goes into a bundle.

Written completely or not at all, and again only where the runtime's pins changed. Downloads stay in
output/wheels/.downloads/ for the next runtime or attempt.
"""

from __future__ import annotations

from pathlib import Path

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table
from kaggle_llm.kaggle.bundle import seal_dataset
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.runtime.pins import list_served, load_runtime
from kaggle_llm.runtime.wheels import collect_wheels, describe_pins

LARGEST_SHOWN = 5  # wheels


def make_wheelhouse(name: str) -> Path:
    """The folder of a runtime's wheels. Raises as `collect_wheels` does; then the old folder stays."""
    runtime = load_runtime(name)
    folder, about = paths.wheels_folder(name), describe_pins(runtime)
    if is_made(folder, about):
        print(f"{paths.relative(folder)} has the wheels of these pins already")
        return folder

    def make(target: Path) -> None:
        collect_wheels(runtime, folder.parent / ".downloads", target)

    def seal(target: Path) -> None:
        with Hashes() as hashes:
            seal_dataset(target, "wheels", about, hashes, f"{name}-wheels")

    records.make_folder(folder, make, seal)
    return folder


def is_made(folder: Path, about: dict[str, object]) -> bool:
    """Whether the folder has the wheels of exactly these pins."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = records.read_json(folder / MANIFEST)
    return all(manifest.get(key) == value for key, value in about.items())


def print_wheelhouse(folder: Path) -> None:
    """Print number and size of the wheels, the largest ones, and the packages left to the image."""
    wheels = sorted((folder / "wheels").glob("*.whl"), key=lambda path: -path.stat().st_size)
    size = sum(path.stat().st_size for path in wheels)
    title = f"{paths.relative(folder)}: {len(wheels)} wheels, {size / 1e6:.1f} MB"
    rows = [[path.name, f"{path.stat().st_size / 1e6:.1f}"] for path in wheels[:LARGEST_SHOWN]]
    print_table(title, ("the largest", "MB"), rows)
    kept = records.read_json(folder / MANIFEST)["kept"]
    print(f"for the cards that its CUDA knows: {', '.join(list_served(load_runtime(folder.name)))}")
    if kept:
        print(f"left to the image: {', '.join(f'{name} {version}' for name, version in kept.items())}")
