"""A complete run → output/bundles/<run>/: Kaggle datasets of code and weights, the notebook, MANIFEST.json.

Split by how often things change: one code dataset of the run, one dataset per model, named after its content, so
that unchanged weights are not uploaded again. Weights are hard links where the file system has them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kaggle_llm import paths, records
from kaggle_llm.experiment import hash_code, hash_input, hash_source
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.runtime.pins import DEFAULT, load_runtime
from kaggle_llm.weights.parity import find_fault
from kaggle_llm.weights.ship import describe_cv

LONGEST_SLUG = 50


def bundle_run(run: str, runtime: str = DEFAULT) -> Path:
    """Build the bundle; raises FileNotFoundError where the run is not complete. runtime: the name of one."""
    folder, image = paths.bundle_folder(run), asdict(load_runtime(runtime))

    def make(target: Path) -> None:
        fill_bundle(run, image, target)

    records.make_folder(folder, make, finish=lambda target: None)
    return folder


def fill_bundle(run: str, runtime: Mapping[str, Any], target: Path) -> None:
    record = read_run(run)
    warn_of_changed_code(run)
    models = {name: paths.absolute(path) for name, path in record.settings["ship"].items()}
    competition = record.settings["config"]["competition"]["name"]
    slugs = {name: add_model(target, competition, path) for name, path in models.items()}
    code = make_slug(f"{competition}-{run}", "code")
    about: dict[str, Any] = {"run": run, "experiment": run.split("--")[0], "competition": competition, "models": slugs}
    about["runtime"] = runtime
    add_code(target / code, run, about)
    served = record.settings["config"].get("server") is not None
    source = "server_notebook.py" if served else "notebook.py"
    write_notebook(paths.root() / "submission" / source, target / "notebook.ipynb")
    datasets = [describe_dataset(target / slug) for slug in sorted({code, *slugs.values()})]
    files = list_entries(target, sealed_hashes(target))
    fault = find_fault(run)
    if fault:
        print(f"not to be pushed as it is: {fault}", file=sys.stderr)
    about |= {"record": record.key, "git": records.git_state()}
    config = record.settings["config"]
    about |= {"ship": config.get("ship", "fold0"), "note": describe_cv(config), "parity": fault or "passed"}
    manifest = {**about, "datasets": datasets, "files": files}
    records.write_json(target / MANIFEST, manifest)


def read_run(run: str) -> records.Record:
    """The record of a complete run."""
    experiment = paths.experiment_folder(run)
    record = records.read_record(paths.run_folder(run))
    if record is None:
        raise FileNotFoundError(f"{run} is no complete run: finish python exp/{experiment.name}/train.py first")
    return record


def warn_of_changed_code(run: str) -> None:
    """Say it where the code that ships is not the code that computed CV; a replay shows whether it matters."""
    now = {"predict.py": hash_source(paths.experiment_folder(run) / "predict.py"), "prediction code": hash_code()}
    for path in sorted(paths.run_folder(run).glob("fold*/oof")):
        record = records.read_record(path)
        changed = [name for name, value in now.items() if record and record.inputs.get(name) != hash_input(value)]
        if changed:
            print(f"{paths.relative(path)}: {', '.join(changed)} changed since: train again", file=sys.stderr)


def add_code(folder: Path, run: str, about: Mapping[str, Any]) -> None:
    """src/, the experiment, the boot script and the resolved config: small, uploaded every time."""
    experiment = paths.experiment_folder(run)
    package = Path(__file__).resolve().parents[1]
    for source, target in (
        (package, folder / "src" / package.name),
        (experiment, folder / "exp" / experiment.name),
        (paths.root() / "submission", folder / "submission"),
    ):
        for path in list_code(source, everything=source == experiment):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)
    shutil.copyfile(paths.run_folder(run) / "config.yaml", folder / "config.yaml")
    seal_dataset(folder, about)


def list_code(folder: Path, everything: bool) -> Iterator[Path]:
    """Relative paths of the .py files below `folder`, or of everything: an experiment may bring a template."""
    for path in records.list_files(folder):
        if everything or path.suffix == ".py":
            yield path.relative_to(folder)


def add_model(
    target: Path, competition: str, source: Path, place: Callable[[Path, Path], None] = records.link_or_copy
) -> str:
    """One dataset with the folder model/, its files put there by `place`; returns its slug, made of the content."""
    hashes = records.hash_files(source)
    record = records.read_record(source)
    if record and record.files != hashes:
        changed = sorted(name for name in {*record.files, *hashes} if record.files.get(name) != hashes.get(name))
        raise ValueError(f"{paths.relative(source)} was changed after it was made ({changed[0]}): train it again")
    slug = make_slug(competition, f"weights-{records.hash_json(hashes)[:8]}")
    folder = target / slug
    if not folder.exists():
        for name in hashes:
            place(source / name, folder / "model" / name)
        seal_dataset(folder, {}, {f"model/{name}": sha256 for name, sha256 in hashes.items()})
    return slug


def seal_dataset(folder: Path, about: Mapping[str, Any], known: Mapping[str, str] | None = None) -> None:
    """dataset-metadata.json (the owner is added at push) and the dataset's own MANIFEST.json."""
    metadata = {"title": folder.name, "id": folder.name, "licenses": [{"name": "other"}]}
    entries = list_entries(folder, known)
    records.write_json(folder / "dataset-metadata.json", metadata)
    records.write_json(folder / MANIFEST, {"slug": folder.name, **about, "files": entries})


def describe_dataset(folder: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in records.list_files(folder))
    return {"slug": folder.name, "folder": folder.name, "bytes": size}


def list_entries(folder: Path, known: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of every file below `folder`; known: hashes that need not be computed again."""
    known = known or {}
    return [
        {"path": name, "bytes": path.stat().st_size, "sha256": known.get(name) or records.hash_file(path)}
        for path in records.list_files(folder)
        for name in [path.relative_to(folder).as_posix()]
    ]


def sealed_hashes(folder: Path) -> dict[str, str]:
    """The hashes that the datasets below `folder` were sealed with, a moment ago."""
    return {
        f"{manifest.parent.name}/{entry['path']}": entry["sha256"]
        for manifest in folder.glob(f"*/{MANIFEST}")
        for entry in records.read_json(manifest)["files"]
    }


def make_slug(text: str, ending: str) -> str:
    """`<text>-<ending>` by Kaggle's rules: lower case, hyphens, 6 to 50 characters; shortened with a hash."""
    body = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    slug = f"{body}-{ending}"
    if len(slug) > LONGEST_SLUG or re.search(r"[^a-z0-9_-]", text):  # what is lost would make two names one
        short = records.hash_json(text)[:8]
        slug = f"{body[: LONGEST_SLUG - len(ending) - 10].rstrip('-')}-{short}-{ending}"
    return slug


def print_bundle(folder: Path) -> None:
    """One line a dataset."""
    for dataset in records.read_json(folder / MANIFEST)["datasets"]:
        print(f"{paths.relative(folder / dataset['folder'])}  {dataset['bytes'] / 1e6:.1f} MB")
