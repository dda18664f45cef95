"""A bundle on its way to Kaggle: what must be true before anything is sent, then one dataset after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kaggle_llm import paths, records
from kaggle_llm.kaggle.client import run_kaggle
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.weights.parity import find_fault


def push_run(run: str, accept_parity: str = "") -> None:
    """Upload the bundle's datasets. accept_parity: the reason why a missing or failed parity does not matter.

    Raises FileNotFoundError where the bundle is not there, ValueError where its parity does not allow it.
    """
    folder = paths.bundle_folder(run)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{paths.relative(folder)} does not exist: kaggle-llm bundle {run}")
    manifest = check_parity_gate(folder, run, accept_parity)
    for dataset in manifest["datasets"]:
        print(run_kaggle("datasets", "create", "-p", str(folder / dataset["folder"]), "-r", "tar"), flush=True)


def check_parity_gate(folder: Path, run: str, accept_parity: str) -> dict[str, Any]:
    """The bundle's manifest, with the reason in it where one was needed."""
    manifest: dict[str, Any] = records.read_json(folder / MANIFEST)
    record = records.read_record(paths.run_folder(run))
    if record is None or manifest["record"] != record.key:
        raise ValueError(f"{paths.relative(folder)} is of another state of the run: kaggle-llm bundle {run}")
    fault = find_fault(run)
    if fault and not accept_parity:
        raise ValueError(f"{fault}. If that is no fault here, say why: --accept-parity REASON")
    if fault:
        manifest |= {"parity": fault, "parity_accepted": accept_parity}
        records.write_json(folder / MANIFEST, manifest)
    return manifest
