"""Trace an artefact back to the raw data, with the commands that make it again.

Reads records, manifests and reports only. A parent is found by the hash of its content, so a submission.csv may have
been copied anywhere; artefacts that were made again since are marked.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.data_files import ENDINGS
from kaggle_llm.inference.model import read_models
from kaggle_llm.kaggle.bundle import identify_bundle
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.push import PUSH

REPORT = "report.json"
HASH_CHARACTERS = 12  # shown of a hash


@dataclass(frozen=True)
class TraceNode:
    """One artefact, its details, and the artefacts that it was made from."""

    title: str
    details: list[str] = field(default_factory=list)
    parents: list[TraceNode] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Make it again from its parents."""


def trace_path(name: str) -> TraceNode:
    """The ancestry of a path, or of a run by its name.

    Raises FileNotFoundError where there is no such path, LookupError where no record here names what made it.
    """
    path = Path(name) if Path(name).exists() else paths.run_folder(name)
    if not path.exists():
        raise FileNotFoundError(f"{name} is neither a path nor a run of output/")
    return Ancestry().trace(path.resolve())


class Ancestry:
    """Finds the ancestors of an artefact in the records of this repository."""

    def trace(self, path: Path) -> TraceNode:
        if (path / MANIFEST).is_file() and path.parent == paths.root() / "output" / "bundles":
            return self.bundle(records.read_json(path / MANIFEST))
        if (path / REPORT).is_file():
            return self.rehearsal(path)
        if (path / records.RECORD).is_file():
            return self.artefact(path)
        if path.is_file():
            return self.file(path)
        raise LookupError(f"{paths.relative(path)} has no record, no manifest and no report: nothing says what made it")

    def file(self, path: Path) -> TraceNode:
        """A submission by its content; another file by the record in its folder or above."""
        digest = records.hash_file(path)
        title = f"{paths.relative(path)}  sha256 {digest[:HASH_CHARACTERS]}"
        parents = list(self.find_submission(digest))
        if parents:
            return TraceNode(title, [], parents)
        for folder in path.parents:
            record = records.read_record(folder)
            if record and record.files.get(path.relative_to(folder).as_posix()) == digest:
                return TraceNode(title, [], [self.artefact(folder)])
        raise LookupError(
            f"no rehearsal, no output of Kaggle and no record here has {paths.relative(path)} (sha256 "
            f"{digest[:HASH_CHARACTERS]}): was it changed, or made in another repository?"
        )

    def find_submission(self, digest: str) -> Iterator[TraceNode]:
        """The newest rehearsal, else the newest run on Kaggle, with a submission of this content."""
        reports = paths.root().glob(f"output/rehearsals/*/[0-9]*/{REPORT}")
        for report in sorted(
            reports, key=lambda path: path.parent.name, reverse=True
        ):  # folders are named by their time
            submission = records.read_json(report)["submission"]
            if submission and submission["sha256"] == digest:
                yield self.rehearsal(report.parent)
                return
        pushed = paths.root().glob("output/pushes/*/v*/submission.csv")
        for path in sorted(pushed, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if records.hash_file(path) == digest:
                yield self.kernel(path.parent)
                return

    def rehearsal(self, folder: Path) -> TraceNode:
        report, manifest = records.read_json(folder / REPORT), folder / MANIFEST
        bundle = manifest if manifest.is_file() else paths.bundle_folder(report["run"]) / MANIFEST
        details = [f"ok {report['ok']}, {report['rows']} rows of {report['test']}, score {report['score']}"]
        return TraceNode(
            f"rehearsal {paths.relative(folder)}",
            details,
            [self.bundle(records.read_json(bundle))],
            [report["command"]],
        )

    def kernel(self, output: Path) -> TraceNode:
        """A run on Kaggle. output: the folder with its output."""
        pushed = records.read_json(output.parent / PUSH)
        details = [f"dataset {slug}: version {version}" for slug, version in sorted(pushed["datasets"].items())]
        manifest = records.read_json(paths.bundle_folder(pushed["run"]) / MANIFEST)
        title = f"kernel {pushed['kernel']} version {output.name.removeprefix('v')}"
        return TraceNode(title, details, [self.bundle(manifest)], [f"kaggle-llm push {pushed['run']}"])

    def bundle(self, manifest: Mapping[str, Any]) -> TraceNode:
        run, runtime = manifest["run"], manifest["runtime"]["name"]
        details = [describe_git(manifest["git"]), f"runtime {runtime}"]
        details += [f"dataset {dataset['slug']}: {dataset['bytes'] / 1e6:.1f} MB" for dataset in manifest["datasets"]]
        details += list(self.list_kernels(manifest))
        record = records.read_record(paths.run_folder(run))
        if record is None or record.key != manifest["record"]:
            details.append(f"{run} was trained again since: the run below is not the one that was bundled")
        command = f"kaggle-llm bundle {run} --runtime {runtime}"
        return TraceNode(
            f"bundle of {run}", details, [self.artefact(paths.run_folder(run))] if record else [], [command]
        )

    def list_kernels(self, manifest: Mapping[str, Any]) -> Iterator[str]:
        """The kernel versions that ran exactly this bundle."""
        for path in sorted(paths.root().glob(f"output/pushes/*/{PUSH}")):
            pushed = records.read_json(path)
            if pushed["bundle"] == identify_bundle(manifest):
                yield f"kernel {pushed['kernel']} version {pushed['version']}"

    def artefact(self, folder: Path) -> TraceNode:
        """A folder with a record: a step or a whole run."""
        record = records.read_record(folder)
        assert record is not None
        if record.kind == "run":
            return self.whole_run(folder, record)
        details = [
            f"key {record.key[:HASH_CHARACTERS]}, seed {record.seed}, {record.seconds:.0f} s",
            describe_git(record.git),
        ]
        parents = [self.parent(name, digest) for name, digest in record.inputs.items()]
        return TraceNode(f"{record.kind} {paths.relative(folder)}", details, parents)

    def whole_run(self, folder: Path, record: records.Record) -> TraceNode:
        config = record.settings["config"]
        metrics = records.read_json(folder / "metrics.json")
        details = [
            f"key {record.key[:HASH_CHARACTERS]}, seed {record.seed}, {metrics['metric']} {metrics['cv']:.4f} in CV",
            describe_git(record.git),
            ", ".join(f"{name} {version}" for name, version in record.versions.items()),
            f"folds {config.get('folds')}",
        ]
        shipped = read_models(record.settings["ship"])
        parents = [self.parent(model.label, record.inputs[model.label], model.folder) for model in shipped]
        runs = [paths.run_folder(run) for run in record.settings["runs"]]
        parents += [self.artefact(other) for other in runs if records.read_record(other)]
        raw = {name: digest for name, digest in record.inputs.items() if name.endswith(ENDINGS)}
        parents += [self.raw(name, digest, config["competition"]) for name, digest in raw.items()]
        return TraceNode(f"run {folder.name}", details, parents, list(self.training_commands(folder, record)))

    def training_commands(self, folder: Path, record: records.Record) -> Iterator[str]:
        """The commands from a git checkout to the trained run."""
        commit = record.git.get("commit")
        if commit:
            yield f"git checkout {commit}"
        if record.git.get("diff"):
            yield f"git apply {paths.relative(records.diff_path(folder, record.git['diff']))}"
        name = record.settings["config"]["competition"]["name"]
        yield "make env models data" if name.startswith("demo-") else f"make env models && kaggle-llm fetch {name}"
        yield shlex.join(record.settings["command"])

    def parent(self, name: str, digest: str, path: Path | None = None) -> TraceNode:
        """An input by its content: an artefact with a record, a model folder (at `path`), or only the hash."""
        if folders := self.folders_by_content.get(digest):
            node = self.artefact(folders[0])
            return replace(node, title=f"{name} = {node.title}")
        is_same = path is not None and path.is_dir() and records.hash_content(path) == digest
        base = path if is_same else self.base_models.get(digest)
        return TraceNode(f"{name}{f' = {paths.relative(base)}' if base else ''}  content {digest[:HASH_CHARACTERS]}")

    def raw(self, name: str, digest: str, competition: Mapping[str, Any]) -> TraceNode:
        """A file of the competition, and whether the one here is still the same."""
        path = paths.absolute(competition["dir"] or f"input/{competition['name']}") / name
        if not path.is_file():
            now = "not here"
        else:
            now = (
                "the file here is the same" if records.hash_file(path) == digest else "the file here is another one now"
            )
        return TraceNode(f"{paths.relative(path)}  sha256 {digest}", [now])

    @cached_property
    def folders_by_content(self) -> dict[str, list[Path]]:
        """Content hash → the folders with a record and this content."""
        folders: dict[str, list[Path]] = {}
        for path in sorted((paths.root() / "output").glob(f"*/**/{records.RECORD}")):
            record = records.read_record(path.parent)
            if record and record.kind != "run":
                folders.setdefault(records.hash_json(record.files), []).append(path.parent)
        return folders

    @cached_property
    def base_models(self) -> dict[str, Path]:
        """Content hash → model folder of input/models/."""
        folders = (paths.root() / "input" / "models").glob("*/config.json")
        return {records.hash_content(path.parent): path.parent for path in folders}


def describe_git(git: Mapping[str, Any]) -> str:
    """ "git 1a2b3c, with changes a1b2 that were not committed"."""
    if not git.get("commit"):
        return "git: made outside a repository"
    changes = f", with uncommitted changes (diff {git.get('diff', '?')[:HASH_CHARACTERS]})" if git.get("dirty") else ""
    return f"git {git['commit'][:HASH_CHARACTERS]}{changes}"


def list_commands(node: TraceNode) -> list[str]:
    """The commands that make the artefact again, in order, each once."""
    commands = [command for parent in node.parents for command in list_commands(parent)] + node.commands
    return list(dict.fromkeys(commands))


def print_trace(node: TraceNode) -> None:
    """Print the tree; an artefact that occurs again only by its title."""
    print("\n".join(draw_tree(node, "", set())))


def draw_tree(node: TraceNode, indent: str, seen: set[str]) -> Iterator[str]:
    is_repeated = node.title in seen and bool(node.parents)
    yield f"{indent}{node.title}{'  (as above)' if is_repeated else ''}"
    seen.add(node.title)
    if is_repeated:
        return
    yield from (f"{indent}    {detail}" for detail in node.details)
    for parent in node.parents:
        yield from draw_tree(parent, f"{indent}  ", seen)
