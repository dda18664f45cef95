"""Drills: a stand-in is damaged as uploads and disks are, and the boot script must end with a message that names it.

Each ends before a model is loaded. Leaves drills/<name>.txt, the log of each.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kaggle_llm.base import records
from kaggle_llm.kaggle.predict import HASHED_BELOW, MANIFEST
from kaggle_llm.rehearsal.checks import Check
from kaggle_llm.rehearsal.sandbox import NAMESPACE, find_method
from kaggle_llm.rehearsal.session import RERUN_VARIABLE, Site, clear_working, read_lines
from kaggle_llm.rehearsal.stage import OWNED, attach, stage_competition

PATIENCE = 60.0  # seconds for what must not even start
BOOT = "import boot, sys; from pathlib import Path; boot.main(Path(sys.argv[1]), Path(sys.argv[2]))"
WHEEL = "drill_wheel-1.0-cp27-cp27m-manylinux1_x86_64.whl"  # of a Python that no image has


@dataclass(frozen=True)
class Drill:
    """`damage` breaks something below input/ while it is open, and yields what the message must name."""

    name: str
    damage: Callable[[Site, Path], AbstractContextManager[str]]
    full: bool = False
    models: bool = False
    """Only of a bundle that has some."""


def run_drills(site: Site) -> list[Check]:
    """One check each."""
    folder, mount = site.folder / "drills", site.sandbox.kaggle / "input"
    folder.mkdir()
    clear_working(site.working, None)
    with attach(site.depot, mount, OWNED) as code:
        stage_competition(site.settings, None, mount / OWNED.competitions / site.settings.name)
        return [run_drill(drill, site, code, folder) for drill in DRILLS]


def run_drill(drill: Drill, site: Site, code: Path, folder: Path) -> Check:
    name = f"drill: {drill.name}"
    if drill.full and find_method() != NAMESPACE:
        return Check(name, True, "not drilled: this system lets nobody mount a full disk")
    if drill.models and not find_models(code):
        return Check(name, True, "not drilled: the bundle has no models")
    with drill.damage(site, code) as thing:
        words = boot_in(
            replace(site, sandbox=replace(site.sandbox, full=drill.full)), code, folder / f"{drill.name}.txt"
        )
    if words is None:
        return Check(name, False, f"went on without a word about {thing}")
    named = [line for line in words if thing in line and "error" in line.lower()]
    return Check(name, bool(named), named[-1][-300:] if named else f"does not name {thing}: {words[-1][-300:]}")


def boot_in(site: Site, code: Path, log: Path) -> list[str] | None:
    """The lines that the boot script says; None where it ended well, or did not end."""
    seen, root = site.inside(code), site.sandbox.mount
    environment = {"PYTHONPATH": str(seen / "submission"), "PYTHONDONTWRITEBYTECODE": "1", RERUN_VARIABLE: "1"}
    environment["KAGGLE_LLM_LIMIT"] = str(PATIENCE)
    try:
        done = site.sandbox.run([sys.executable, "-c", BOOT, str(seen), str(root)], log, environment, 2 * PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    return read_lines(log) if done else None


def find_models(code: Path) -> dict[str, Path]:
    """slug or source → the folder with the model, as mounted."""
    models, mount = records.read_json(code / MANIFEST)["models"], code.parents[2]
    places = {model[key] for model in models for key in ("folder", "base") if key in model}
    return {place: mount / "models" / place if "/" in place else code.parent / place / "model" for place in places}


@contextmanager
def lose_dataset(site: Site, code: Path) -> Iterator[str]:
    """One of the models is not attached."""
    source, folder = max(find_models(code).items())
    attached = folder if "/" in source else folder.parent
    away = site.folder / "away"
    attached.rename(away)
    yield source
    away.rename(attached)


@contextmanager
def corrupt_weights(site: Site, code: Path) -> Iterator[str]:
    """The largest file of the models has another byte; a file that is hashed beside the load has lost its end."""
    files = [path for folder in find_models(code).values() for path in records.list_files(folder)]
    path = max(files, key=lambda path: path.stat().st_size)
    away = site.folder / "away"
    path.rename(away)
    size = away.stat().st_size
    if size < HASHED_BELOW:
        content = bytearray(away.read_bytes())
        content[size // 2] ^= 1
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            file.truncate(size - 1)
    yield str(site.inside(path))
    path.unlink()
    away.rename(path)


@contextmanager
def mix_up_wheels(site: Site, code: Path) -> Iterator[str]:
    """A dataset of wheels, made up for this Python, has one of another."""
    manifest, folder = records.read_json(code / MANIFEST), code.parent / "drill-wheels"
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    write_wheel(wheels / WHEEL)
    digest = records.hash_file(wheels / WHEEL)
    (wheels / "SHA256SUMS").write_text(f"{digest}  {WHEEL}  {WHEEL}\n")
    records.write_json(folder / MANIFEST, {"slug": folder.name, "kind": "wheels", "content": digest, "files": []})
    image = {**manifest["runtime"]["image"], "python": ".".join(map(str, sys.version_info[:2]))}
    changed = {**manifest, "wheels": folder.name, "runtime": {**manifest["runtime"], "image": image}}
    records.write_json(code / MANIFEST, changed)
    yield WHEEL
    records.write_json(code / MANIFEST, manifest)
    shutil.rmtree(folder)


def write_wheel(path: Path) -> None:
    about = "drill_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("drill_wheel.py", "")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: drill-wheel\nVersion: 1.0\n")
        tag = path.stem.split("-", 2)[2]
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")


@contextmanager
def fill_working(site: Site, code: Path) -> Iterator[str]:
    """The sandbox mounts a disk without room there."""
    yield str(site.sandbox.mount / "working")


DRILLS = (
    Drill("a missing dataset", lose_dataset, models=True),
    Drill("a wrong wheel", mix_up_wheels),
    Drill("a corrupt weight file", corrupt_weights, models=True),
    Drill("a full working folder", fill_working, full=True),
)
