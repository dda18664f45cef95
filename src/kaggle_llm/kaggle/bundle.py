"""Bundle a complete run in output/bundles/<run>/: datasets of code, weights and wheels, the notebook, MANIFEST.json.

One code dataset of the run, one dataset a model, named by its content so that unchanged weights are not uploaded
again, and one of the runtime's wheels. A base model that exists on Kaggle is attached as a model source instead.
Weights and wheels are hard links where the file system has them.
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
from kaggle_llm.competition.competition import read_hours
from kaggle_llm.experiment.recorded import has_changed
from kaggle_llm.inference.ensemble import MEMBERS
from kaggle_llm.inference.model import Model, describe_model, list_folders, read_models
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.metadata import DATASET, MODEL_SOURCE, MOST_ENTRIES, describe_dataset, slugify
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.secrets import check_secrets
from kaggle_llm.runtime.pins import DEFAULT, choose_accelerator, load_runtime
from kaggle_llm.weights.parity import find_fault
from kaggle_llm.weights.ship import describe_cv

LONGEST_SLUG = 50
FILE_NAME = re.compile(r"[A-Za-z0-9._-]+")  # other names are changed by the upload, or cannot be unpacked
SKIPPED_FOLDERS = {".cache", ".huggingface", ".git"}  # left out by the kaggle CLI, needed by no model

PutFile = Callable[[Path, Path], None]  # puts a source file at a target path


def bundle_run(run: str, runtime: str = DEFAULT, accelerator: str | None = None) -> Path:
    """Build the bundle and return its folder. runtime: a name, as in runtime/runtimes/; accelerator: by default the
    config's.

    Raises FileNotFoundError where the run is not complete, ValueError for secrets, pickles, links that leave their
    folder, file names that Kaggle does not keep, and an accelerator that the competition does not give.
    """
    folder = paths.bundle_folder(run)

    def make(target: Path) -> None:
        with Hashes() as hashes:
            fill_bundle(run, runtime, accelerator, target, hashes)

    records.make_folder(folder, make)
    return folder


def fill_bundle(run: str, runtime: str, accelerator: str | None, target: Path, hashes: Hashes) -> None:
    paths.experiment_folder(run)  # a name that no experiment has is refused with those that there are
    record = records.read_complete(run)
    config, competition = record.settings["config"], record.settings["config"]["competition"]["name"]
    machine = load_runtime(runtime, choose_accelerator(config, accelerator))
    warn_of_changed_code(run)
    shipped = read_models(record.settings["ship"])
    check_as_recorded(run, record, shipped)
    sources = find_model_sources(config.get("sources", {}), list_folders(shipped))
    put_file = reuse_files(paths.bundle_folder(run), target, hashes)
    shipped_as = {
        folder: sources.get(folder) or add_model(target, competition, folder, hashes, put_file)
        for folder in list_folders(shipped)
    }
    models = [describe_model(model, shipped_as.__getitem__) for model in shipped]
    wheels = add_wheels(target, runtime)
    about: dict[str, Any] = {"run": run, "experiment": run.split("--")[0], "competition": competition, "models": models}
    about["sources"] = {source: list_model(folder, hashes) for folder, source in sources.items()}
    about |= {"wheels": wheels, "runtime": asdict(machine), "hours": read_hours(config)}
    code = make_slug(f"{competition}-{run}", "code")
    add_code(target / code, run, config.get("members", []))
    seal_dataset(target / code, "code", about, hashes)
    source = "notebook.py" if config.get("server") is None else "server_notebook.py"
    write_notebook(paths.root() / "submission" / source, target / "notebook.ipynb")
    weights = {name for name in shipped_as.values() if "/" not in name}
    datasets = sorted({code, *weights, *([wheels] if wheels else [])})
    about["datasets"] = [measure_dataset(target / slug) for slug in datasets]
    seal_bundle(target, run, record, about, hashes)


def seal_bundle(target: Path, run: str, record: records.Record, about: Mapping[str, Any], hashes: Hashes) -> None:
    """Write the bundle's own MANIFEST.json.

    A bundle of the same content keeps the commit of the one before, if that had no uncommitted changes.
    """
    config, fault = record.settings["config"], find_fault(run)
    if fault:
        print(f"push refuses this bundle as it is: {fault}", file=sys.stderr)
    manifest = {**about, "record": record.key, "git": records.git_state(), "ship": config.get("ship", "fold0")}
    manifest |= {"note": describe_cv(config), "parity": fault or "passed", "files": list_file_entries(target, hashes)}
    previous = records.read_optional(paths.bundle_folder(run) / MANIFEST, {"git": {}})
    if {**previous, "git": {}} == {**manifest, "git": {}} and not previous["git"].get("dirty"):
        manifest["git"] = previous["git"]
    records.write_json(target / MANIFEST, manifest)


def reuse_files(previous: Path, target: Path, hashes: Hashes) -> PutFile:
    """A function that links a file of the previous bundle where its name and content are the same, else the source.

    So a source on another disk, which cannot be linked, is copied once and not for every bundle.
    """

    def put_file(source: Path, path: Path) -> None:
        old = previous / path.relative_to(target)
        is_same = old.is_file() and hashes.of(old) == hashes.of(source)
        records.link_or_copy(old if is_same else source, path)

    return put_file


def find_model_sources(sources: Mapping[str, str], folders: Iterable[Path]) -> dict[Path, str]:
    """Shipped folder → its Kaggle model source, by the config's `sources`.

    Raises ValueError for a malformed source, and for a model that was made here.
    """
    matches = {}
    for path in folders:
        source = sources.get(paths.relative(path))
        if source is None:
            continue
        if not MODEL_SOURCE.fullmatch(source):
            setting = f"sources: {source!r} for {paths.relative(path)}"
            raise ValueError(f"{setting}: write owner/model/framework/variation/version, such as …/1")
        if (path / records.RECORD).is_file():
            raise ValueError(f"sources: {paths.relative(path)} was made here, Kaggle has no such model")
        matches[path] = source
    return matches


def warn_of_changed_code(run: str) -> None:
    """Warn where the code that ships is not the code that computed CV; a replay shows whether it matters."""
    if has_changed(run):
        print(f"{run}: the prediction code has changed since: train again", file=sys.stderr)


def check_as_recorded(run: str, record: records.Record, shipped: Iterable[Model]) -> None:
    """Raises ValueError for a model or decision made here that changed since the run was completed."""
    for model in shipped:
        made_here = model.folder.is_relative_to(paths.root() / "output")
        if made_here and records.hash_content(model.folder) != record.inputs[model.label]:
            raise ValueError(f"{paths.relative(model.folder)} is not what {run} was made with: train {run} again")


def add_code(folder: Path, run: str, members: Sequence[str] = ()) -> None:
    """src/, the experiment and those of its ensemble members, the boot script and the resolved configs."""
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
        for path in list_source_files(source, everything=source == experiment):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)


def list_source_files(folder: Path, everything: bool) -> Iterator[Path]:
    """Relative paths of the .py and .yaml files below `folder`, or of all files."""
    for path in records.list_files(folder):
        if everything or path.suffix in (".py", ".yaml"):
            yield path.relative_to(folder)


def add_model(
    target: Path, competition: str, source: Path, hashes: Hashes, put_file: PutFile = records.link_or_copy
) -> str:
    """Make a dataset with the folder model/, its files put there by `put_file`; returns its slug, named by content."""
    hashes_now = {entry["path"]: entry["sha256"] for entry in list_model(source, hashes)}
    record = records.read_record(source)
    changed = find_differences(record.files, hashes_now) if record else []
    if changed:
        raise ValueError(f"{paths.relative(source)} was changed after it was made ({changed[0]}): train it again")
    slug = make_slug(competition, f"weights-{records.hash_json(hashes_now)[:8]}")
    folder = target / slug
    if not folder.exists():
        check_links(source)
        for name in hashes_now:
            put_file(source / name, folder / "model" / name)
        seal_dataset(folder, "weights", {}, hashes)
    return slug


def add_wheels(target: Path, runtime: str) -> str | None:
    """Add the runtime's wheels; returns their slug, None where `kaggle-llm wheels` has not made them."""
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
    """Write dataset-metadata.json (the owner is added at push), CONTENT-<hash>.txt and the dataset's MANIFEST.json.

    The hash in the file's name shows in a listing on Kaggle which content is there. slug: if it is not the folder's
    name. Raises ValueError for files that must not be uploaded.
    """
    check_secrets(folder)
    entries = list_file_entries(folder, hashes)
    check_file_names(folder, [entry["path"] for entry in entries])
    content = records.hash_json([entries, kind, dict(about)])
    records.write_text(folder / f"CONTENT-{content[:16]}.txt", f"{content}\n")
    slug = slug or folder.name
    manifest = {"slug": slug, "kind": kind, **about, "content": content, "files": list_file_entries(folder, hashes)}
    records.write_json(folder / MANIFEST, manifest)
    records.write_json(folder / DATASET, describe_dataset(slug))
    entries_at_top = [path for path in folder.iterdir() if path.name != DATASET]
    if len(entries_at_top) > MOST_ENTRIES:
        raise ValueError(
            f"{folder.name} has {len(entries_at_top)} files and folders at its top, Kaggle takes {MOST_ENTRIES}"
        )


def check_file_names(folder: Path, names: list[str]) -> None:
    for name in names:
        odd = [part for part in name.split("/") if not FILE_NAME.fullmatch(part)]
        if odd:
            raise ValueError(
                f"{folder.name}/{name}: Kaggle does not keep the name {odd[0]!r}: use letters, digits and ._-"
            )


def check_links(folder: Path) -> None:
    """Raises ValueError for a symbolic link out of `folder`: the files there would be bundled unchecked."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{paths.relative(path)} is a link to {path.resolve()}, outside its folder: copy it there")


def list_model(folder: Path, hashes: Hashes) -> list[dict[str, Any]]:
    """The entries of a model's files, without the caches that a download leaves."""
    return [entry for entry in list_file_entries(folder, hashes) if not SKIPPED_FOLDERS & set(entry["path"].split("/"))]


def measure_dataset(folder: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in records.list_files(folder))
    return {"slug": folder.name, "folder": folder.name, "bytes": size}


def list_file_entries(folder: Path, hashes: Hashes) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of every file below `folder`."""
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": hashes.of(path)}
        for path in records.list_files(folder)
    ]


def identify_bundle(manifest: Mapping[str, Any]) -> str:
    """The hash of a bundle's content: of its files, not of the rest of its manifest."""
    return records.hash_json(manifest["files"])


def find_changes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of a bundle that differ from its manifest."""
    with Hashes() as hashes:
        entries = [entry for entry in list_file_entries(folder, hashes) if entry["path"] != MANIFEST]
    listed, present = ({entry["path"]: entry["sha256"] for entry in part} for part in (manifest["files"], entries))
    return find_differences(listed, present)


def find_differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names whose hash changed, or that only one of the two has, sorted."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def make_slug(text: str, ending: str) -> str:
    """`<text>-<ending>` by Kaggle's rules: lower case, hyphens, 6 to 50 characters; shortened with a hash."""
    body = slugify(text)
    slug = f"{body}-{ending}"
    if len(slug) > LONGEST_SLUG or re.search(r"[^a-z0-9_-]", text):  # dropped characters could make two names the same
        short = records.hash_json(text)[:8]
        slug = f"{body[: LONGEST_SLUG - len(ending) - 10].rstrip('-')}-{short}-{ending}"
    return slug


def print_bundle(folder: Path) -> None:
    """Print one line a dataset."""
    for dataset in records.read_json(folder / MANIFEST)["datasets"]:
        print(f"{paths.relative(folder / dataset['folder'])}  {dataset['bytes'] / 1e6:.1f} MB")
