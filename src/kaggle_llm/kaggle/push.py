"""A bundle on its way to Kaggle: gates, datasets, the notebook, and what it left there beside the rehearsal.

Leaves output/pushes/<kernel>/push.json, which `submit` reads: {"run", "bundle", "kernel", "version", "datasets",
"output"}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import Competition, CompetitionSettings, load_competition, read_csv
from kaggle_llm.competition.rankings import is_values, read_rows
from kaggle_llm.kaggle.bundle import identify_bundle, make_slug, read_run
from kaggle_llm.kaggle.client import find_owner
from kaggle_llm.kaggle.datasets import ensure_dataset
from kaggle_llm.kaggle.kernels import ensure_kernel, follow_kernel, write_kernel
from kaggle_llm.kaggle.metadata import describe_kernel
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.runtime.pins import load_runtime
from kaggle_llm.weights.parity import find_fault

if TYPE_CHECKING:
    import polars as pl

PUSH = "push.json"
FEWEST_ALIKE = 0.8  # of the first items: fp16 on a GPU turns near ties over, another model turns everything


def push_run(run: str, accept_parity: str = "") -> dict[str, Any]:
    """Upload what changed, push the notebook, wait for its end, compare its output with the rehearsal's.

    accept_parity: the reason why a missing or failed parity does not matter. Interrupted anywhere, the same call
    goes on.
    Raises FileNotFoundError where the bundle is not there, ValueError where a gate is shut, OSError where Kaggle does
    not do what was asked.
    """
    folder, manifest = open_bundle(run, accept_parity)
    owner, slug = find_owner(), kernel_slug(manifest)
    code, folders = read_code_manifest(folder, manifest), list_datasets(folder, manifest)
    ref, version, datasets = push_notebook(folder / "notebook.ipynb", code, folders, owner, slug)
    output = follow_kernel(ref, version)
    pushed: dict[str, Any] = {
        "run": run,
        "bundle": identify_bundle(manifest),
        "kernel": ref,
        "version": version,
        "datasets": datasets,
        "output": compare_output(run, folder, output),
    }
    records.write_json(paths.pushes_folder(slug) / PUSH, pushed)
    print(f"{ref} version {version}: {describe_output(pushed['output'])}", flush=True)
    return pushed


def open_bundle(run: str, accept_parity: str = "") -> tuple[Path, dict[str, Any]]:
    """The bundle and its manifest, once every gate that needs no network is open."""
    folder = paths.bundle_folder(run)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{paths.relative(folder)} does not exist: kaggle-llm bundle {run}")
    manifest = check_parity_gate(folder, run, accept_parity)
    code = read_code_manifest(folder, manifest)
    name = code["runtime"]["name"]
    if code["wheels"] is None and load_runtime(name).brought():
        raise ValueError(
            f"runtime {name} brings packages that the image lacks, and the bundle has no wheels: "
            f"kaggle-llm wheels {name}, then kaggle-llm bundle {run}"
        )
    return folder, manifest


def push_notebook(
    notebook: Path, code: Mapping[str, Any], folders: Sequence[Path], owner: str, slug: str
) -> tuple[str, int, dict[str, int]]:
    """Datasets, then the notebook on them: its name, its version, and that of each dataset.

    code: the manifest of the code dataset. folders: all datasets.
    """
    datasets = {path.name: ensure_dataset(path, owner) for path in folders}
    sources = sorted(code["sources"])
    metadata = describe_kernel(slug, owner, code["runtime"], code["competition"], list(datasets), sources)
    content = records.hash_json([records.hash_file(path / MANIFEST) for path in folders])
    kernel = paths.pushes_folder(slug) / "kernel"
    stamp = write_kernel(kernel, notebook, metadata, content)
    return metadata["id"], ensure_kernel(kernel, stamp), datasets


def list_datasets(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The folders of a bundle's datasets."""
    return [folder / dataset["folder"] for dataset in manifest["datasets"]]


def read_code_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the bundle's code dataset: what the notebook reads on Kaggle."""
    found = [records.read_json(path / MANIFEST) for path in list_datasets(folder, manifest)]
    (code,) = (one for one in found if one.get("kind") == "code")
    return dict(code)


def kernel_slug(manifest: dict[str, Any], ending: str = "notebook") -> str:
    return make_slug(f"{manifest['competition']}-{manifest['run']}", ending)


def check_parity_gate(folder: Path, run: str, accept_parity: str) -> dict[str, Any]:
    """The bundle's manifest, with the reason in it where one was needed."""
    manifest: dict[str, Any] = records.read_json(folder / MANIFEST)
    record = records.read_record(paths.run_folder(run))
    if record is None or manifest["record"] != record.key:
        raise ValueError(f"{paths.relative(folder)} is of another state of the run: kaggle-llm bundle {run}")
    fault = find_fault(run)
    accept_parity = accept_parity or (manifest.get("parity_accepted", "") if manifest["parity"] == fault else "")
    if fault and not accept_parity:
        raise ValueError(f"{fault}. If that is no fault here, say why: --accept-parity REASON")
    if fault and manifest.get("parity_accepted") != accept_parity:
        manifest |= {"parity": fault, "parity_accepted": accept_parity}
        records.write_json(folder / MANIFEST, manifest)
    return manifest


def compare_output(run: str, bundle: Path, output: Path) -> dict[str, Any]:
    """{"ok", "rows", "alike", "problems"}: the submission from Kaggle, by the sample and by the rehearsal's public run.

    alike: share of its rows whose first item is the rehearsal's, None where there was no such run.
    """
    import polars as pl

    competition, problems = competition_of(run), find_foreign_output(bundle, output)
    path, rehearsed = output / "submission.csv", paths.rehearsals_folder(run) / "latest" / "public" / "ranking.parquet"
    if not path.is_file():
        return {"ok": False, "rows": 0, "alike": None, "problems": [*problems, "the notebook left no submission.csv"]}
    submission = read_csv(path)
    problems += competition.check_submission(submission)
    alike = None
    if rehearsed.is_file() and (output / "ranking.parquet").is_file():
        alike = share_first(pl.read_parquet(output / "ranking.parquet"), pl.read_parquet(rehearsed))
        if alike < FEWEST_ALIKE:
            problems.append(f"only {alike:.0%} of the rows begin with the rehearsal's item: is it another model?")
    return {"ok": not problems, "rows": submission.height, "alike": alike, "problems": problems[:5]}


def share_first(found: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Share of the rows of two answers, by id, that begin with the same item, or whose values are nearly the same; 1
    where they have none in common."""
    one, other = read_rows(found), read_rows(expected)
    both = [i for i in one if i in other]
    numbers = is_values(found)
    same = [alike(one[i], other[i]) if numbers else list(one[i])[:1] == list(other[i])[:1] for i in both]
    return sum(same) / len(both) if both else 1.0


def alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Values that differ by less than a hundredth."""
    return all(math.isclose(value, other[place], rel_tol=0.01, abs_tol=0.01) for place, value in one.items())


def find_foreign_output(bundle: Path, output: Path) -> list[str]:
    """Whether the output is of this bundle: right after a push, Kaggle may still show the run before."""
    path = output / "prediction.json"
    found = records.read_json(path).get("content") if path.is_file() else None
    wanted = read_code_manifest(bundle, records.read_json(bundle / MANIFEST))["content"]
    return [] if found == wanted else [f"the output is of content {found}, not of {wanted}: push again in a minute"]


def competition_of(run: str) -> Competition:
    """The competition that a run was trained on, where it lies here."""
    return load_competition(CompetitionSettings(**read_run(run).settings["config"]["competition"]))


def describe_output(found: dict[str, Any]) -> str:
    alike = "" if found["alike"] is None else f", {found['alike']:.1%} begin with the rehearsal's item"
    return f"{found['rows']} rows{alike}" + "".join(f"; {problem}" for problem in found["problems"])
