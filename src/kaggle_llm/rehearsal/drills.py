"""Drills: damage the stand-in as uploads and disks get damaged; the boot script must end with a message that names it.

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

DRILL_TIMEOUT = 60.0  # seconds; no prediction may start
BOOT = "import boot, sys; from pathlib import Path; boot.main(Path(sys.argv[1]), Path(sys.argv[2]))"
WRONG_WHEEL = "drill_wheel-1.0-cp27-cp27m-manylinux1_x86_64.whl"  # of a Python that no image has


@dataclass(frozen=True)
class Drill:
    """`damage` breaks something below input/ while it is open, and yields the name that the message must contain."""

    name: str
    damage: Callable[[Site, Path], AbstractContextManager[str]]
    full: bool = False
    """Needs a full disk."""
    models: bool = False
    """Needs a bundle with models."""


def run_drills(site: Site) -> list[Check]:
    """One check for each drill."""
    folder, mount = site.folder / "drills", site.sandbox.kaggle / "input"
    folder.mkdir()
    clear_working(site.working, None)
    with attach(site.depot, mount, OWNED) as code:
        stage_competition(site.settings, None, mount / OWNED.competitions / site.settings.name)
        return [run_drill(drill, site, code, folder) for drill in DRILLS]


def run_drill(drill: Drill, site: Site, code: Path, folder: Path) -> Check:
    name = f"drill: {drill.name}"
    if drill.full and find_method() != NAMESPACE:
        return Check(name, True, "not drilled: this system does not let us mount a full disk")
    if drill.models and not find_mounted_models(code):
        return Check(name, True, "not drilled: the bundle has no models")
    damaged = replace(site, sandbox=replace(site.sandbox, full=drill.full))
    with drill.damage(site, code) as target:
        lines = boot_in(damaged, code, folder / f"{drill.name}.txt")
    if lines is None:
        return Check(name, False, f"went on without an error about {target}")
    errors = [line for line in lines if target in line and "error" in line.lower()]
    return Check(name, bool(errors), errors[-1][-300:] if errors else f"does not name {target}: {lines[-1][-300:]}")


def boot_in(site: Site, code: Path, log: Path) -> list[str] | None:
    """The output lines of the boot script; None where it succeeded or did not end."""
    inside, root = site.inside(code), site.sandbox.mount
    environment = {"PYTHONPATH": str(inside / "submission"), "PYTHONDONTWRITEBYTECODE": "1", RERUN_VARIABLE: "1"}
    environment["KAGGLE_LLM_LIMIT"] = str(DRILL_TIMEOUT)
    try:
        returned = site.sandbox.run(
            [sys.executable, "-c", BOOT, str(inside), str(root)], log, environment, 2 * DRILL_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return None
    return read_lines(log) if returned else None


def find_mounted_models(code: Path) -> dict[str, Path]:
    """Dataset slug or model source → the mounted model folder."""
    models, mount = records.read_json(code / MANIFEST)["models"], code.parents[2]
    names = {model[key] for model in models for key in ("folder", "base") if key in model}
    return {name: mount / "models" / name if "/" in name else code.parent / name / "model" for name in names}


@contextmanager
def lose_dataset(site: Site, code: Path) -> Iterator[str]:
    """One of the models is not attached."""
    source, folder = max(find_mounted_models(code).items())
    attached = folder if "/" in source else folder.parent
    away = site.folder / "away"
    attached.rename(away)
    yield source
    away.rename(attached)


@contextmanager
def corrupt_weights(site: Site, code: Path) -> Iterator[str]:
    """One byte of the largest model file is changed; a file that is hashed only during the load is cut short."""
    files = [path for folder in find_mounted_models(code).values() for path in records.list_files(folder)]
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
    """A dataset of wheels for this Python has a wheel of another one."""
    manifest, folder = records.read_json(code / MANIFEST), code.parent / "drill-wheels"
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    write_wheel(wheels / WRONG_WHEEL)
    digest = records.hash_file(wheels / WRONG_WHEEL)
    (wheels / "SHA256SUMS").write_text(f"{digest}  {WRONG_WHEEL}  {WRONG_WHEEL}\n")
    records.write_json(folder / MANIFEST, {"slug": folder.name, "kind": "wheels", "content": digest, "files": []})
    image = {**manifest["runtime"]["image"], "python": ".".join(map(str, sys.version_info[:2]))}
    changed = {**manifest, "wheels": folder.name, "runtime": {**manifest["runtime"], "image": image}}
    records.write_json(code / MANIFEST, changed)
    yield WRONG_WHEEL
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
    """The sandbox mounts a full disk as the working folder."""
    yield str(site.sandbox.mount / "working")


DRILLS = (
    Drill("a missing dataset", lose_dataset, models=True),
    Drill("a wrong wheel", mix_up_wheels),
    Drill("a corrupt weight file", corrupt_weights, models=True),
    Drill("a full working folder", fill_working, full=True),
)
