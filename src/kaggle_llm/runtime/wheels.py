"""The wheels of a runtime: resolve its pins for the image's Python and glibc, download what the lock names.

uv resolves, because pip evaluates environment markers for the Python that runs it; pip downloads. Both use the indexes
of the user's own settings. Leaves in the target folder lock.txt (name==version and the hash of the chosen wheel), and
wheels/ with the wheels and SHA256SUMS, whose lines are hash, name of the file, name of the wheel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.runtime.pins import Image, Runtime
from kaggle_llm.runtime.tags import choose_wheel, list_platforms

PIN = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?P<hashes>(?:[ \\\n]+--hash=sha256:[0-9a-f]{64})+)$", re.M)
NO_DAY = "9999-01-01T00:00:00Z"  # for packages with a pin of their own


@dataclass(frozen=True)
class LockedPackage:
    """One package of the lock."""

    name: str
    version: str
    hashes: frozenset[str]
    """sha256 of each of its files, wheels for other machines too."""


def collect_wheels(runtime: Runtime, downloads: Path, target: Path) -> None:
    """Resolve, download what is not in `downloads` yet, check the hashes, and link it into `target`.

    Raises ValueError for pins that exclude each other and for a wheel that the image does not take, RuntimeError
    where the download fails: the next call goes on with what arrived.
    """
    resolved = resolve_pins(runtime)
    download_wheels(resolved, runtime.image, downloads)
    locked = read_lock(resolved)
    chosen = {locked[name]: wheel for name, wheel in choose_wheels(locked, downloads, runtime.image).items()}
    write_wheelhouse(chosen, target)


def describe_pins(runtime: Runtime) -> dict[str, Any]:
    """Everything that decides which wheels are chosen."""
    image = asdict(runtime.image)
    about = {name: image[name] for name in ("python", "glibc")}
    return {"runtime": runtime.name, **about, "day": runtime.day, "pins": runtime.brought(), "kept": runtime.kept()}


def resolve_pins(runtime: Runtime) -> str:
    """uv's lock: every package that the wheelhouse needs, with the hashes of all its files."""
    image, kept, pins = runtime.image, runtime.kept(), runtime.brought()
    platform = f"x86_64-manylinux_{image.glibc.replace('.', '_')}"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", image.python, "--python-platform", platform]
    command += ["--no-python-downloads", "--only-binary", ":all:", "--generate-hashes", "--exclude-newer", runtime.day]
    command += [word for name in (*pins, *kept) for word in ("--exclude-newer-package", f"{name}={NO_DAY}")]
    command += [word for name in kept for word in ("--no-emit-package", name)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_requirements(folder / "kept.in", kept)
        write_requirements(folder / "pins.in", pins, write_stand_ins(folder / "kept", kept))
        command += ["--constraint", str(folder / "kept.in"), str(folder / "pins.in")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the pins of runtime {runtime.name} do not go together:\n{done.stderr.strip()}")
    return done.stdout


def write_requirements(path: Path, pins: Mapping[str, str], stand_ins: Path | None = None) -> None:
    lines = [f"--find-links {stand_ins.as_uri()}"] if stand_ins else []
    path.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in pins.items()), ""]), "utf-8")


def write_stand_ins(folder: Path, kept: Mapping[str, str]) -> Path:
    """Empty wheels for the image's own builds, which no index has: requirements on them are still checked."""
    folder.mkdir()
    for name, version in kept.items():
        if "+" in version:
            about = f"{name}-{version}.dist-info"
            with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
                wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{about}/RECORD", "")
    return folder


def download_wheels(resolved: str, image: Image, downloads: Path) -> None:
    """pip shows its own progress; a wheel that is there with the right hash is not downloaded again."""
    downloads.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        lock = Path(name) / "lock.txt"
        lock.write_text(resolved, "utf-8")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "--implementation", "cp"]
        command += ["--python-version", image.python, "--abi", f"cp{image.python.replace('.', '')}"]
        command += ["--abi", "abi3", "--abi", "none", "--dest", str(downloads), "--requirement", str(lock)]
        command += [word for platform in list_platforms(image.glibc) for word in ("--platform", platform)]
        done = subprocess.run(command, check=False)
    if done.returncode:
        raise RuntimeError(
            f"pip download ended with exit code {done.returncode}: see its output above; what arrived is kept, "
            f"the same command goes on"
        )


def read_lock(resolved: str) -> dict[str, LockedPackage]:
    """name → package of uv's lock. Raises ValueError for a line of another form."""
    packages = {
        match["name"]: LockedPackage(
            match["name"], match["version"], frozenset(re.findall(r"sha256:(\w+)", match["hashes"]))
        )
        for match in PIN.finditer(resolved)
    }
    rest = PIN.sub("", resolved).split()
    if rest:
        raise ValueError(f"uv's lock has a line that is no pin with hashes: {' '.join(rest[:3])}")
    return packages


def choose_wheels(locked: Mapping[str, LockedPackage], downloads: Path, image: Image) -> dict[str, Path]:
    """name → the best wheel for the image among those with one of the package's hashes.

    Raises ValueError for a wheel that the image does not take, FileNotFoundError where a package has none.
    """
    wheels = defaultdict(list)
    for name, wheel in list_wheels(downloads):
        if name in locked and records.hash_file(wheel) in locked[name].hashes:
            wheels[name].append(wheel)
    missing = [f"{name}=={package.version}" for name, package in locked.items() if name not in wheels]
    if missing:
        raise FileNotFoundError(f"no wheel of {', '.join(missing)} arrived in {downloads}")
    return {name: choose_wheel(wheels[name], image) for name in locked}


def list_wheels(folder: Path) -> Iterator[tuple[str, Path]]:
    """(normalised name, wheel) of every wheel in the folder."""
    from packaging.utils import parse_wheel_filename

    for path in sorted(folder.glob("*.whl")):
        yield parse_wheel_filename(path.name)[0], path


def write_wheelhouse(chosen: Mapping[LockedPackage, Path], target: Path) -> None:
    """lock.txt and wheels/ from the packages and their wheels, as links."""
    lock, sums = [], []
    for package, wheel in sorted(chosen.items(), key=lambda pair: pair[0].name):
        digest, stored = records.hash_file(wheel), store_name(wheel.name)
        records.link_or_copy(wheel, target / "wheels" / stored)
        lock.append(f"{package.name}=={package.version} --hash=sha256:{digest}\n")
        sums.append(f"{digest}  {stored}  {wheel.name}\n")
    records.write_text(target / "lock.txt", "".join(lock))
    records.write_text(target / "wheels" / "SHA256SUMS", "".join(sums))


def store_name(wheel: str) -> str:
    """A name that Kaggle keeps: the `+` of a local version does not survive the upload."""
    return re.sub(r"[^A-Za-z0-9._-]", "_plus_", wheel)
