"""Push a bundle to Kaggle: check its gates, upload datasets and notebook, compare the output with the rehearsal's.

Leaves output/pushes/<kernel>/push.json, which `submit` reads: {"run", "bundle", "kernel", "version", "datasets",
"output"}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.rankings import is_values, read_rows
from kaggle_llm.kaggle.bundle import identify_bundle, make_slug
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
FEWEST_ALIKE = 0.8  # of the rows: fp16 on a GPU flips near ties, another model changes most rows


def push_run(run: str, accept_parity: str = "") -> dict[str, Any]:
    """Upload what changed, push the notebook, wait for its end, compare its output with the rehearsal's.

    accept_parity: the reason why a missing or failed parity does not matter. After an interruption the same call
    continues. Raises FileNotFoundError where there is no bundle, ValueError where a gate is shut, OSError where Kaggle
    refuses or fails.
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
    """The bundle's folder and manifest; raises ValueError where a gate that needs no network is shut."""
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
    """Upload the datasets, push the notebook; returns owner/slug, its version, and the version of each dataset.

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
    manifests = [records.read_json(path / MANIFEST) for path in list_datasets(folder, manifest)]
    (code,) = (dataset for dataset in manifests if dataset.get("kind") == "code")
    return dict(code)


def kernel_slug(manifest: dict[str, Any], ending: str = "notebook") -> str:
    return make_slug(f"{manifest['competition']}-{manifest['run']}", ending)


def check_parity_gate(folder: Path, run: str, accept_parity: str) -> dict[str, Any]:
    """The bundle's manifest; a reason to accept its parity is noted in it."""
    manifest: dict[str, Any] = records.read_json(folder / MANIFEST)
    record = records.read_record(paths.run_folder(run))
    if record is None or manifest["record"] != record.key:
        raise ValueError(f"{paths.relative(folder)} was made of another state of the run: kaggle-llm bundle {run}")
    fault = find_fault(run)
    accept_parity = accept_parity or (manifest.get("parity_accepted", "") if manifest["parity"] == fault else "")
    if fault and not accept_parity:
        raise ValueError(f"{fault}. If it does not matter here, say why: --accept-parity REASON")
    if fault and manifest.get("parity_accepted") != accept_parity:
        manifest |= {"parity": fault, "parity_accepted": accept_parity}
        records.write_json(folder / MANIFEST, manifest)
    return manifest


def compare_output(run: str, bundle: Path, output: Path) -> dict[str, Any]:
    """{"ok", "rows", "empty", "alike", "problems"}: Kaggle's submission beside the sample and the rehearsal's run.

    empty: how many rows have the answer without items, as text. alike: share of the rows whose first item is the
    rehearsal's; None without a rehearsal.
    """
    import polars as pl

    competition, problems = competition_of(run), find_foreign_output(bundle, output)
    path, rehearsed = output / "submission.csv", paths.rehearsals_folder(run) / "latest" / "public" / "ranking.parquet"
    if not path.is_file():
        problems.append("the notebook left no submission.csv")
        return {"ok": False, "rows": 0, "empty": "", "alike": None, "problems": problems}
    submission = read_csv(path)
    problems += competition.check_submission(submission)
    alike = None
    if rehearsed.is_file() and (output / "ranking.parquet").is_file():
        alike = share_alike(pl.read_parquet(output / "ranking.parquet"), pl.read_parquet(rehearsed))
        if alike < FEWEST_ALIKE:
            problems.append(f"only {alike:.0%} of the rows have the rehearsal's first item: is it another model?")
    empty = competition.describe_empty(submission)
    return {"ok": not problems, "rows": submission.height, "empty": empty, "alike": alike, "problems": problems[:5]}


def share_alike(ranking: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Share of the common rows of two RANKINGs with the same first item, or of VALUES with nearly the same values.

    1 where they have no row in common.
    """
    first, second = read_rows(ranking), read_rows(expected)
    common = [i for i in first if i in second]
    if is_values(ranking):
        alike = [are_close(first[i], second[i]) for i in common]
    else:
        alike = [list(first[i])[:1] == list(second[i])[:1] for i in common]
    return sum(alike) / len(common) if common else 1.0


def are_close(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Whether all values differ by less than a hundredth."""
    return all(math.isclose(value, second[name], rel_tol=0.01, abs_tol=0.01) for name, value in first.items())


def find_foreign_output(bundle: Path, output: Path) -> list[str]:
    """A problem where the output is another bundle's: right after a push, Kaggle may still show the run before."""
    content = records.read_optional(output / "prediction.json", {}).get("content")
    own = read_code_manifest(bundle, records.read_json(bundle / MANIFEST))["content"]
    return [] if content == own else [f"the output is of content {content}, not of {own}: push again in a minute"]


def competition_of(run: str) -> Competition:
    """The competition that a run was trained on."""
    return load_competition(CompetitionSettings(**records.read_complete(run).settings["config"]["competition"]))


def describe_output(output: dict[str, Any]) -> str:
    alike = "" if output["alike"] is None else f", {output['alike']:.1%} have the rehearsal's first item"
    notes = filter(None, [output.get("empty", ""), *output["problems"]])
    return f"{output['rows']} rows{alike}" + "".join(f"; {note}" for note in notes)
