"""Train the attached experiment under Kaggle's mounts, as in its repository. Standard library only.

Leaves working/run.tar, the folder output/<run>/ as train.py made it, and run.json: {"run", "content", "sha256"}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import boot

LIMIT = 12 * 3600 - 900.0  # seconds of a session, less the time for packing the run


def main(code: Path, root: Path) -> None:
    """Run train.py of the code dataset `code` and pack its run. Raises RuntimeError where it fails or the time ends."""
    start, manifest = time.time(), boot.read_manifest(code)
    limit = float(os.environ.get("KAGGLE_LLM_LIMIT", LIMIT))
    boot.compare_machine(code, root)
    repository = lay_out(code, root, manifest)
    variables = {**boot.environment(code, boot.install_wheels(code, root)), "KAGGLE_LLM_ROOT": str(repository)}
    command = [*launch_command(code), f"exp/{manifest['experiment']}/train.py", *manifest["words"]]
    returned = boot.run_process(command, repository, variables, start + limit)
    if returned is None:
        raise RuntimeError(f"training was killed at the limit of {limit:.0f} s: take fewer folds, rows or epochs")
    if returned:
        raise RuntimeError(f"train.py ended with exit code {returned}: see its log above")
    pack_run(repository / "output" / manifest["run"], root / "working", manifest)


def lay_out(code: Path, root: Path, manifest: dict) -> Path:
    """Make a repository of links: code, competition and models, at the paths that the config names; returns it."""
    repository, mount = Path(tempfile.mkdtemp(prefix="repository-")), root / "input"
    datasets = boot.find_datasets(mount, {slug for slug in manifest["models"].values() if "/" not in slug})
    for name in ("exp", "submission", "git.json"):
        link(repository / name, code / name)
    link(repository / manifest["competition_folder"], boot.find_competition(mount, manifest["competition"]))
    for name, slug in manifest["models"].items():
        if "/" not in slug and slug not in datasets:
            raise FileNotFoundError(f"dataset {slug} ({name}) is not attached; attached are {sorted(datasets)}")
        link(repository / name, datasets[slug] / "model" if slug in datasets else boot.find_model(mount, slug))
    (repository / "output").mkdir(exist_ok=True)
    return repository


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def launch_command(code: Path) -> list[str]:
    """python, or torchrun where there is more than one GPU."""
    sys.path.insert(0, str(code / "src"))
    from kaggle_llm.runtime.machine import query_gpus

    sys.path.remove(str(code / "src"))
    try:
        cards = len(query_gpus())
    except OSError:  # no nvidia-smi: off Kaggle
        cards = 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cards)]
    return [sys.executable, *(torchrun if cards > 1 else [])]


def pack_run(run: Path, working: Path, manifest: dict) -> None:
    archive = working / "run.tar"
    with tarfile.open(archive, "w") as file:
        file.add(run, arcname=run.name)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"run": run.name, "content": manifest["content"], "sha256": digest}
    (working / "run.json").write_text(json.dumps(about), encoding="utf-8")
    print(f"run.tar: {archive.stat().st_size / 1e6:.1f} MB", flush=True)
