"""A complete run → output/bundles/<run>/: Kaggle datasets of code, weights and wheels, the notebook, MANIFEST.json.

Split by how often things change: one code dataset of the run, one dataset per model, named after its content, so
that unchanged weights are not uploaded again, and the runtime's wheels. A base model that exists on Kaggle is named as
a model source instead. Weights and wheels are hard links where the file system has them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.decisions.member_blend import MEMBERS
from kaggle_llm.experiment.recorded import has_changed
from kaggle_llm.inference.model import Model, describe_model, list_folders, read_models
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.metadata import DATASET, MODEL_SOURCE, MOST_ENTRIES, describe_dataset
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.secrets import check_secrets
from kaggle_llm.runtime.pins import DEFAULT, load_runtime
from kaggle_llm.weights.parity import find_fault
from kaggle_llm.weights.ship import describe_cv

LONGEST_SLUG = 50
NAME = re.compile(r"[A-Za-z0-9._-]+")  # of a file or folder; others are changed on the way up, or unpacking fails
LEFT = {".cache", ".huggingface", ".git"}  # folders that the kaggle CLI leaves out, and that no model needs

Place = Callable[[Path, Path], None]


def bundle_run(run: str, runtime: str = DEFAULT) -> Path:
    """Build the bundle; raises FileNotFoundError where the run is not complete. runtime: the name of one.

    Raises ValueError for secrets, pickles, links that leave their folder, and names that Kaggle does not keep.
    """
    folder = paths.bundle_folder(run)

    def make(target: Path) -> None:
        with Hashes() as hashes:
            fill_bundle(run, runtime, target, hashes)

    records.make_folder(folder, make, finish=lambda target: None)
    return folder


def fill_bundle(run: str, runtime: str, target: Path, hashes: Hashes) -> None:
    record = read_run(run)
    config, competition = record.settings["config"], record.settings["config"]["competition"]["name"]
    warn_of_changed_code(run)
    shipped = read_models(record.settings["ship"])
    check_as_recorded(run, record, shipped)
    sources = check_sources(config.get("sources", {}), list_folders(shipped))
    place = place_from(paths.bundle_folder(run), target, hashes)
    places = {
        folder: sources.get(folder) or add_model(target, competition, folder, hashes, place)
        for folder in list_folders(shipped)
    }
    models = [describe_model(model, places.__getitem__) for model in shipped]
    wheels = add_wheels(target, runtime)
    about: dict[str, Any] = {"run": run, "experiment": run.split("--")[0], "competition": competition, "models": models}
    about["sources"] = {source: list_model(folder, hashes) for folder, source in sources.items()}
    about |= {"wheels": wheels, "runtime": asdict(load_runtime(runtime))}
    code = make_slug(f"{competition}-{run}", "code")
    add_code(target / code, run, config.get("members", []))
    seal_dataset(target / code, "code", about, hashes)
    served = config.get("server") is not None
    source = "server_notebook.py" if served else "notebook.py"
    write_notebook(paths.root() / "submission" / source, target / "notebook.ipynb")
    weights = {slug for slug in places.values() if "/" not in slug}
    datasets = sorted({code, *weights, *([wheels] if wheels else [])})
    seal_bundle(
        target, run, record, {**about, "datasets": [measure_dataset(target / slug) for slug in datasets]}, hashes
    )


def seal_bundle(target: Path, run: str, record: records.Record, about: Mapping[str, Any], hashes: Hashes) -> None:
    """The bundle's own MANIFEST.json.

    The same content keeps the commit with which it was bundled first, where that commit was all of the code.
    """
    config, fault = record.settings["config"], find_fault(run)
    if fault:
        print(f"not to be pushed as it is: {fault}", file=sys.stderr)
    manifest = {**about, "record": record.key, "git": records.git_state(), "ship": config.get("ship", "fold0")}
    manifest |= {"note": describe_cv(config), "parity": fault or "passed", "files": list_entries(target, hashes)}
    path = paths.bundle_folder(run) / MANIFEST
    before = records.read_json(path) if path.is_file() else {"git": {}}
    if {**before, "git": {}} == {**manifest, "git": {}} and not before["git"].get("dirty"):
        manifest["git"] = before["git"]
    records.write_json(target / MANIFEST, manifest)


def place_from(before: Path, target: Path, hashes: Hashes) -> Place:
    """Link to what the bundle before has of the same name and content, else to the source.

    So what cannot be linked to, on another disk, is copied once and not for every bundle.
    """

    def place(source: Path, path: Path) -> None:
        had = before / path.relative_to(target)
        same = had.is_file() and hashes.of(had) == hashes.of(source)
        records.link_or_copy(had if same else source, path)

    return place


def check_sources(sources: Mapping[str, str], folders: Iterable[Path]) -> dict[Path, str]:
    """Shipped folder → where Kaggle has it, by the config's `sources`: model folder → Kaggle model source.

    Raises ValueError for what is no such source, and for a model that was made here.
    """
    found = {}
    for path in folders:
        source = sources.get(paths.relative(path))
        if source is None:
            continue
        if not MODEL_SOURCE.fullmatch(source):
            where = f"sources: {source!r} for {paths.relative(path)}"
            raise ValueError(f"{where}: write owner/model/framework/variation/1, 1 the version")
        if (path / records.RECORD).is_file():
            raise ValueError(f"sources: {paths.relative(path)} was made here, Kaggle has no such model")
        found[path] = source
    return found


def read_run(run: str) -> records.Record:
    """The record of a complete run."""
    experiment = paths.experiment_folder(run)
    record = records.read_record(paths.run_folder(run))
    if record is None:
        raise FileNotFoundError(f"{run} is no complete run: finish python exp/{experiment.name}/train.py first")
    return record


def warn_of_changed_code(run: str) -> None:
    """Say it where the code that ships is not the code that computed CV; a replay shows whether it matters."""
    if has_changed(run):
        print(f"{run}: the code that answers has changed since: train again", file=sys.stderr)


def check_as_recorded(run: str, record: records.Record, shipped: Iterable[Model]) -> None:
    """Raises ValueError for what was made here and is not what the run was completed with, such as another decision."""
    for model in shipped:
        made = model.folder.is_relative_to(paths.root() / "output")
        if made and records.hash_content(model.folder) != record.inputs[model.label]:
            raise ValueError(f"{paths.relative(model.folder)} is not what {run} was made with: train {run} again")


def add_code(folder: Path, run: str, members: Sequence[str] = ()) -> None:
    """src/, the experiment and those of its members, the boot script and the resolved configs."""
    for experiment in dict.fromkeys(map(paths.experiment_folder, [run, *members])):
        add_sources(folder, experiment)
    shutil.copyfile(paths.run_folder(run) / "config.yaml", folder / "config.yaml")
    for member in members:
        records.write_text(folder / MEMBERS / f"{member}.yaml", (paths.run_folder(member) / "config.yaml").read_text())


def add_sources(folder: Path, experiment: Path) -> None:
    """src/, exp/<experiment>/ and submission/ below `folder`."""
    package = Path(__file__).resolve().parents[1]
    for source, target in (
        (package, folder / "src" / package.name),
        (experiment, folder / "exp" / experiment.name),
        (paths.root() / "submission", folder / "submission"),
    ):
        check_links(source)
        for path in list_code(source, everything=source == experiment):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)


def list_code(folder: Path, everything: bool) -> Iterator[Path]:
    """Relative paths of code and its settings below `folder`, or of everything: an experiment may bring a template."""
    for path in records.list_files(folder):
        if everything or path.suffix in (".py", ".yaml"):
            yield path.relative_to(folder)


def add_model(target: Path, competition: str, source: Path, hashes: Hashes, place: Place = records.link_or_copy) -> str:
    """One dataset with the folder model/, its files put there by `place`; returns its slug, made of the content."""
    found = {entry["path"]: entry["sha256"] for entry in list_model(source, hashes)}
    record = records.read_record(source)
    if record and record.files != found:
        changed = sorted(name for name in {*record.files, *found} if record.files.get(name) != found.get(name))
        raise ValueError(f"{paths.relative(source)} was changed after it was made ({changed[0]}): train it again")
    slug = make_slug(competition, f"weights-{records.hash_json(found)[:8]}")
    folder = target / slug
    if not folder.exists():
        check_links(source)
        for name in found:
            place(source / name, folder / "model" / name)
        seal_dataset(folder, "weights", {}, hashes)
    return slug


def add_wheels(target: Path, runtime: str) -> str | None:
    """The runtime's wheels, where `kaggle-llm wheels` has made them; their slug."""
    source = paths.wheels_folder(runtime)
    if not (source / MANIFEST).is_file():
        if load_runtime(runtime).brought():
            print(f"without wheels: kaggle-llm wheels {runtime}, then bundle again, before a push", file=sys.stderr)
        return None
    slug = str(records.read_json(source / MANIFEST)["slug"])
    for path in records.list_files(source):
        records.link_or_copy(path, target / slug / path.relative_to(source))
    return slug


def seal_dataset(folder: Path, kind: str, about: Mapping[str, Any], hashes: Hashes, slug: str | None = None) -> None:
    """dataset-metadata.json (the owner is added at push), a mark of the content, and the dataset's own MANIFEST.json.

    The mark is a file with the content's hash in its name: a listing of names on Kaggle says what lies there.
    slug: where it is not the folder's name. Raises ValueError for what must not travel.
    """
    check_secrets(folder)
    entries = list_entries(folder, hashes)
    check_names(folder, [entry["path"] for entry in entries])
    content = records.hash_json([entries, kind, dict(about)])
    records.write_text(folder / f"CONTENT-{content[:16]}.txt", f"{content}\n")
    slug = slug or folder.name
    manifest = {"slug": slug, "kind": kind, **about, "content": content, "files": list_entries(folder, hashes)}
    records.write_json(folder / MANIFEST, manifest)
    records.write_json(folder / DATASET, describe_dataset(slug))
    entered = [path.name for path in folder.iterdir() if path.name != DATASET]
    if len(entered) > MOST_ENTRIES:
        raise ValueError(f"{folder.name} has {len(entered)} files and folders at its top, Kaggle takes {MOST_ENTRIES}")


def check_names(folder: Path, names: list[str]) -> None:
    for name in names:
        odd = [part for part in name.split("/") if not NAME.fullmatch(part)]
        if odd:
            raise ValueError(
                f"{folder.name}/{name}: Kaggle does not keep the name {odd[0]!r}: use letters, digits and ._-"
            )


def check_links(folder: Path) -> None:
    """Raises ValueError for a symbolic link below `folder` that leads out of it: nobody sees what would travel."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{paths.relative(path)} is a link to {path.resolve()}, outside its folder: copy it there")


def list_model(folder: Path, hashes: Hashes) -> list[dict[str, Any]]:
    """The entries of a model's files, without what a download leaves beside them."""
    return [entry for entry in list_entries(folder, hashes) if not LEFT & set(entry["path"].split("/"))]


def measure_dataset(folder: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in records.list_files(folder))
    return {"slug": folder.name, "folder": folder.name, "bytes": size}


def list_entries(folder: Path, hashes: Hashes | None = None) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of every file below `folder`; hashes: those that need not be computed again."""
    find = hashes.of if hashes else records.hash_file
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": find(path)}
        for path in records.list_files(folder)
    ]


def identify_bundle(manifest: Mapping[str, Any]) -> str:
    """What a bundle holds, as one hash: of its files, not of what was noted of them."""
    return records.hash_json(manifest["files"])


def find_changes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of a bundle that are not what its manifest lists."""
    with Hashes() as hashes:
        found = {entry["path"]: entry["sha256"] for entry in list_entries(folder, hashes) if entry["path"] != MANIFEST}
    listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    return sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))


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
