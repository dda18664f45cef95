"""Where an artefact comes from, back to the raw data, and the commands that make it again.

Reads records, manifests and reports only. A parent is found by the hash of its content, so a submission.csv may have
been copied anywhere, and what was made again since is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.inference.model import read_models
from kaggle_llm.kaggle.bundle import identify_bundle
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.push import PUSH

REPORT = "report.json"
SHORT = 12  # characters of a hash that are shown
RAW = ".csv"


@dataclass(frozen=True)
class Node:
    """One artefact: what it is, what is known of it, and what it was made from."""

    title: str
    details: list[str] = field(default_factory=list)
    parents: list[Node] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """What makes it, once its parents are there."""


def trace_path(name: str) -> Node:
    """The ancestry of a path, or of a run by its name.

    Raises FileNotFoundError where there is no such path, LookupError where nothing here says what made it.
    """
    path = Path(name) if Path(name).exists() else paths.run_folder(name)
    if not path.exists():
        raise FileNotFoundError(f"{name} is neither a path nor a run of output/")
    return Ancestry().trace(path.resolve())


class Ancestry:
    """The records of this repository, and what they say of each other."""

    def trace(self, path: Path) -> Node:
        if (path / MANIFEST).is_file() and path.parent == paths.root() / "output" / "bundles":
            return self.bundle(records.read_json(path / MANIFEST))
        if (path / REPORT).is_file():
            return self.rehearsal(path)
        if (path / records.RECORD).is_file():
            return self.artefact(path)
        if path.is_file():
            return self.file(path)
        raise LookupError(f"{paths.relative(path)} has no record, no manifest and no report: nothing says what made it")

    def file(self, path: Path) -> Node:
        """A file by its content where it is a submission, else by the record beside it or above it."""
        digest = records.hash_file(path)
        title = f"{paths.relative(path)}  sha256 {digest[:SHORT]}"
        parents = list(self.find_submission(digest))
        if parents:
            return Node(title, [], parents)
        for folder in path.parents:
            record = records.read_record(folder)
            if record and record.files.get(path.relative_to(folder).as_posix()) == digest:
                return Node(title, [], [self.artefact(folder)])
        raise LookupError(
            f"no rehearsal, no output of Kaggle and no record here has {paths.relative(path)} (sha256 "
            f"{digest[:SHORT]}): was it changed, or made in another repository?"
        )

    def find_submission(self, digest: str) -> Iterator[Node]:
        """The rehearsal, or the run on Kaggle, that left a submission of this content; the newest one."""
        reports = paths.root().glob(f"output/rehearsals/*/[0-9]*/{REPORT}")
        for report in sorted(reports, key=lambda path: path.parent.name, reverse=True):  # its folder is its time
            found = records.read_json(report)["submission"]
            if found and found["sha256"] == digest:
                yield self.rehearsal(report.parent)
                return
        pushed = paths.root().glob("output/pushes/*/v*/submission.csv")
        for path in sorted(pushed, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if records.hash_file(path) == digest:
                yield self.kernel(path.parent)
                return

    def rehearsal(self, folder: Path) -> Node:
        report, manifest = records.read_json(folder / REPORT), folder / MANIFEST
        bundle = manifest if manifest.is_file() else paths.bundle_folder(report["run"]) / MANIFEST
        details = [f"ok {report['ok']}, {report['rows']} rows of {report['test']}, score {report['score']}"]
        return Node(
            f"rehearsal {paths.relative(folder)}",
            details,
            [self.bundle(records.read_json(bundle))],
            [report["command"]],
        )

    def kernel(self, output: Path) -> Node:
        """A run on Kaggle, by the folder with its output."""
        pushed = records.read_json(output.parent / PUSH)
        details = [f"dataset {slug}: version {version}" for slug, version in sorted(pushed["datasets"].items())]
        manifest = records.read_json(paths.bundle_folder(pushed["run"]) / MANIFEST)
        title = f"kernel {pushed['kernel']} version {output.name.removeprefix('v')}"
        return Node(title, details, [self.bundle(manifest)], [f"kaggle-llm push {pushed['run']}"])

    def bundle(self, manifest: Mapping[str, Any]) -> Node:
        run, runtime = manifest["run"], manifest["runtime"]["name"]
        details = [describe_git(manifest["git"]), f"runtime {runtime}"]
        details += [f"dataset {dataset['slug']}: {dataset['bytes'] / 1e6:.1f} MB" for dataset in manifest["datasets"]]
        details += list(self.list_kernels(manifest))
        record = records.read_record(paths.run_folder(run))
        if record is None or record.key != manifest["record"]:
            details.append(f"{run} was made again since: what stands below is not what was bundled")
        command = f"kaggle-llm bundle {run} --runtime {runtime}"
        return Node(f"bundle of {run}", details, [self.run(run)] if record else [], [command])

    def list_kernels(self, manifest: Mapping[str, Any]) -> Iterator[str]:
        """Where exactly this bundle was pushed to."""
        for path in sorted(paths.root().glob(f"output/pushes/*/{PUSH}")):
            pushed = records.read_json(path)
            if pushed["bundle"] == identify_bundle(manifest):
                yield f"kernel {pushed['kernel']} version {pushed['version']}"

    def run(self, run: str) -> Node:
        return self.artefact(paths.run_folder(run))

    def artefact(self, folder: Path) -> Node:
        """A folder with a record: a step, or a whole run."""
        record = records.read_record(folder)
        assert record is not None
        if record.kind == "run":
            return self.whole_run(folder, record)
        details = [f"key {record.key[:SHORT]}, seed {record.seed}, {record.seconds:.0f} s", describe_git(record.git)]
        parents = [self.parent(name, digest) for name, digest in record.inputs.items()]
        return Node(f"{record.kind} {paths.relative(folder)}", details, parents)

    def whole_run(self, folder: Path, record: records.Record) -> Node:
        config = record.settings["config"]
        metrics = records.read_json(folder / "metrics.json")
        details = [
            f"key {record.key[:SHORT]}, seed {record.seed}, {metrics['metric']} {metrics['cv']:.4f} in CV",
            describe_git(record.git),
            ", ".join(f"{name} {version}" for name, version in record.versions.items()),
            f"folds {config.get('folds')}",
        ]
        shipped = read_models(record.settings["ship"])
        parents = [self.parent(one.label, record.inputs[one.label], one.folder) for one in shipped]
        raw = {name: digest for name, digest in record.inputs.items() if name.endswith(RAW)}
        parents += [self.raw(name, digest, config["competition"]) for name, digest in raw.items()]
        return Node(f"run {folder.name}", details, parents, list(self.training_commands(folder, record)))

    def training_commands(self, folder: Path, record: records.Record) -> Iterator[str]:
        """From a checkout to the run: the code, the environment and data, the training."""
        experiment, commit = folder.name.split("--")[0], record.git.get("commit")
        if commit:
            yield f"git checkout {commit}"
        if record.git.get("diff"):
            yield f"git apply {paths.relative(records.diff_path(folder, record.git['diff']))}"
        name = record.settings["config"]["competition"]["name"]
        yield "make env models data" if name.startswith("demo-") else f"make env models && kaggle-llm fetch {name}"
        yield shlex.join(["python", f"exp/{experiment}/train.py", *record.settings.get("words", [])])

    def parent(self, name: str, digest: str, path: Path | None = None) -> Node:
        """What an input was, by its content: an artefact with a record, a model folder (at `path`), or only a hash."""
        for folder in self.known.get(digest, []):
            made = self.artefact(folder)
            return replace(made, title=f"{name} = {made.title}")
        here = path is not None and path.is_dir() and records.hash_content(path) == digest
        base = path if here else self.base_models.get(digest)
        return Node(f"{name}{f' = {paths.relative(base)}' if base else ''}  content {digest[:SHORT]}")

    def raw(self, name: str, digest: str, competition: Mapping[str, Any]) -> Node:
        """A file of the competition, and whether it lies here as it was."""
        path = paths.absolute(competition["dir"] or f"input/{competition['name']}") / name
        if not path.is_file():
            now = "not here"
        else:
            now = "as it lies here" if records.hash_file(path) == digest else "another file lies here now"
        return Node(f"{paths.relative(path)}  sha256 {digest}", [now])

    @cached_property
    def known(self) -> dict[str, list[Path]]:
        """Content hash → the folders with a record that have it."""
        found: dict[str, list[Path]] = {}
        for path in sorted((paths.root() / "output").glob(f"*/**/{records.RECORD}")):
            record = records.read_record(path.parent)
            if record and record.kind != "run":
                found.setdefault(records.hash_json(record.files), []).append(path.parent)
        return found

    @cached_property
    def base_models(self) -> dict[str, Path]:
        """Content hash → model folder of input/models/."""
        folders = (paths.root() / "input" / "models").glob("*/config.json")
        return {records.hash_content(path.parent): path.parent for path in folders}


def describe_git(git: Mapping[str, Any]) -> str:
    """ "git 1a2b3c, with changes a1b2 that were not committed"."""
    if not git.get("commit"):
        return "git: made outside a repository"
    changes = f", with uncommitted changes (diff {git.get('diff', '?')[:SHORT]})" if git.get("dirty") else ""
    return f"git {git['commit'][:SHORT]}{changes}"


def list_commands(node: Node) -> list[str]:
    """What makes the artefact again, in order, each once."""
    commands = [command for parent in node.parents for command in list_commands(parent)] + node.commands
    return list(dict.fromkeys(commands))


def print_trace(node: Node) -> None:
    """The tree, an artefact that occurs again only by its name."""
    print("\n".join(draw_tree(node, "", set())))


def draw_tree(node: Node, indent: str, seen: set[str]) -> Iterator[str]:
    known = node.title in seen and bool(node.parents)
    yield f"{indent}{node.title}{'  (as above)' if known else ''}"
    seen.add(node.title)
    if known:
        return
    yield from (f"{indent}    {detail}" for detail in node.details)
    for parent in node.parents:
        yield from draw_tree(parent, f"{indent}  ", seen)
