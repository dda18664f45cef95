"""Bundles: names, manifests, what travels and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT, Workspace, succeed

from kaggle_llm.base import records
from kaggle_llm.base.records import hash_file
from kaggle_llm.kaggle.bundle import (
    add_model,
    bundle_run,
    find_model_sources,
    list_model,
    make_slug,
    reuse_files,
    seal_dataset,
)
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.metadata import describe_kernel
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import check_dataset_files

SMOKE = "exp002_rerank--smoke"


@pytest.mark.parametrize("run", ["exp001_retrieve", "exp002_rerank--r32", "exp" + "x" * 80, "exp002_rerank--A.b_C"])
@pytest.mark.parametrize("competition", ["demo", "eedi-mining-misconceptions-in-mathematics"])
def test_slugs_keep_kaggles_rules(competition: str, run: str) -> None:
    slug = make_slug(f"{competition}-{run}", "code")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) and 6 <= len(slug) <= 50 and slug.endswith("-code")


def test_shortened_slugs_stay_different() -> None:
    slugs = {make_slug(f"a-long-competition-name-{'x' * 40}-{n}", "code") for n in range(100)}
    assert len(slugs) == 100


def test_the_manifest_lists_what_lies_there(trained: Workspace, tmp_path: Path) -> None:
    succeed(trained.cli("bundle", SMOKE))
    bundle = trained.output / "bundles" / SMOKE
    manifest = json.loads((bundle / "MANIFEST.json").read_text())
    assert {"run", "git", "runtime", "datasets", "files"} <= set(manifest)
    assert manifest["hours"] == 9.0, "competition.hours, which the notebook reads"
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"MANIFEST.json"}
    assert {entry["path"] for entry in manifest["files"]} == on_disk
    for entry in manifest["files"]:
        path = bundle / entry["path"]
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, hash_file(path))
    code, *weights = sorted(manifest["datasets"], key=lambda dataset: not dataset["slug"].endswith("-code"))
    assert code["slug"] == "demo-misconceptions-exp002-rerank-smoke-code"
    assert all(re.fullmatch(r"demo-misconceptions-weights-[0-9a-f]{8}", dataset["slug"]) for dataset in weights)
    assert [model["name"] for model in manifest["models"]] == ["encoder", "reranker", "decision"]
    assert sorted(model["folder"] for model in manifest["models"]) == sorted(dataset["slug"] for dataset in weights)
    for dataset in manifest["datasets"]:
        folder = bundle / dataset["folder"]
        check_dataset_files(folder)
        assert json.loads((folder / "dataset-metadata.json").read_text())["title"] == dataset["slug"]
        assert len(list(folder.iterdir())) <= 50
    assert not [path for path in on_disk if "__pycache__" in path or "=" in path or "+" in path]
    write_notebook(ROOT / "submission" / "notebook.py", tmp_path / "notebook.ipynb")
    assert (bundle / "notebook.ipynb").read_bytes() == (tmp_path / "notebook.ipynb").read_bytes()
    texts = [p for p in bundle.rglob("*") if p.suffix in (".json", ".yaml", ".ipynb", ".py")]
    assert not [p for p in texts if str(trained.root) in p.read_text()], "no path of this machine travels"


def test_the_same_run_makes_the_same_bundle_and_copies_no_weights(trained: Workspace) -> None:
    bundle = trained.output / "bundles" / SMOKE
    succeed(trained.cli("bundle", SMOKE))
    first = (bundle / "MANIFEST.json").read_bytes()
    succeed(trained.cli("bundle", SMOKE))
    assert (bundle / "MANIFEST.json").read_bytes() == first
    merged = trained.output / SMOKE / "fold0" / "merged" / "model.safetensors"
    (shipped,) = [p for p in bundle.glob("*/model/model.safetensors") if p.stat().st_ino == merged.stat().st_ino]
    assert shipped.samefile(merged)


def copy_workspace(workspace: Workspace, root: Path) -> Workspace:
    ignored = shutil.ignore_patterns("bundles", "rehearsals")
    shutil.copytree(workspace.root, root, ignore=ignored, symlinks=True)
    return Workspace(root)


def read_manifest(workspace: Workspace, run: str = SMOKE) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((workspace.output / "bundles" / run / "MANIFEST.json").read_text())
    return manifest


def test_a_commit_of_something_else_changes_no_manifest(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_workspace(trained, tmp_path / "other")
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(other.root))

    def commit(name: str) -> None:
        (other.root / name).write_text(f"{name}\n")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        for words in (("add", "exp", "submission", name), (*who, "commit", "-q", "-m", name)):
            subprocess.run(["git", "-C", str(other.root), *words], check=True)

    subprocess.run(["git", "init", "-q", str(other.root)], check=True)
    commit("README.md")
    bundle_run(SMOKE)
    first = read_manifest(other)
    commit("NOTES.md")
    bundle_run(SMOKE)
    assert read_manifest(other) == first and len(first["git"]["commit"]) == 40
    (other.root / "exp" / "exp001_retrieve" / "config.yaml").write_text("not committed: true\n")
    (other.output / "bundles" / SMOKE / "MANIFEST.json").unlink()
    bundle_run(SMOKE)
    assert read_manifest(other)["git"]["dirty"] and read_manifest(other)["git"]["commit"] != first["git"]["commit"]
    commit("exp/exp001_retrieve/config.yaml")
    bundle_run(SMOKE)
    assert not read_manifest(other)["git"]["dirty"], "a commit that is all of the code is better than one that was not"


def test_one_line_of_predict_changes_the_code_and_nothing_else(trained: Workspace, tmp_path: Path) -> None:
    other, warning = copy_workspace(trained, tmp_path / "other"), "the prediction code has changed since"
    done = other.cli("bundle", SMOKE)
    assert succeed(done) and warning not in done.stderr
    before = {entry["path"]: entry["sha256"] for entry in read_manifest(other)["files"]}
    predict = other.root / "exp" / "exp002_rerank" / "predict.py"
    predict.write_text(predict.read_text() + "\nLINE = 1\n")
    done = other.cli("bundle", SMOKE)
    assert succeed(done) and warning in done.stderr
    after = {entry["path"]: entry["sha256"] for entry in read_manifest(other)["files"]}
    changed = {path for path, _ in before.items() ^ after.items()}
    code = "demo-misconceptions-exp002-rerank-smoke-code"
    assert {path for path in changed if "CONTENT" not in path} == {
        f"{code}/exp/exp002_rerank/predict.py",
        f"{code}/MANIFEST.json",
    }
    assert all(path.startswith(code) for path in changed) and len(changed) == 4, "and its mark, before and after"


def test_a_list_of_names_says_which_content_lies_there(tmp_path: Path) -> None:
    def seal(name: str, text: str, about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        folder = tmp_path / name
        records.write_text(folder / "slug" / "a" / "b.txt", text)
        seal_dataset(folder / "slug", "rows", about, Hashes())
        (mark,) = (path.name for path in (folder / "slug").glob("CONTENT-*.txt"))
        return mark, json.loads((folder / "slug" / "MANIFEST.json").read_text())

    mark, manifest = seal("one", "x", {"n": 1})
    assert mark == f"CONTENT-{manifest['content'][:16]}.txt" and (manifest["slug"], manifest["kind"]) == (
        "slug",
        "rows",
    )
    assert (tmp_path / "one" / "slug" / mark).read_text() == f"{manifest['content']}\n"
    assert [entry["path"] for entry in manifest["files"]] == [mark, "a/b.txt"], "what arrives, but for the manifest"
    assert seal("two", "x", {"n": 1}) == (mark, manifest), "no time, no place"
    assert mark not in (seal("three", "y", {"n": 1})[0], seal("four", "x", {"n": 2})[0])


@pytest.mark.parametrize("name", ["lora=16.txt", "torch+cpu.txt", "my notes.txt", "übung.txt", "a/b c/d.txt"])
def test_a_name_that_kaggle_does_not_keep_is_refused(tmp_path: Path, name: str) -> None:
    records.write_text(tmp_path / "slug" / name, "x")
    with pytest.raises(ValueError, match=r"does not keep the name") as refusal:
        seal_dataset(tmp_path / "slug", "rows", {}, Hashes())
    assert f"slug/{name}" in str(refusal.value)


def test_at_most_50_entries_stand_at_the_top(tmp_path: Path) -> None:
    """The mark and the manifest are two of them; a folder is one, whatever it holds."""
    for number in range(47):
        records.write_text(tmp_path / "slug" / f"{number}.txt", "x")
        records.write_text(tmp_path / "slug" / "folder" / f"{number}.txt", "x")
    seal_dataset(tmp_path / "slug", "rows", {}, Hashes())
    records.write_text(tmp_path / "slug" / "more.txt", "x")
    (mark,) = (tmp_path / "slug").glob("CONTENT-*.txt")
    mark.unlink()
    with pytest.raises(ValueError, match="slug has 51 files and folders at its top, Kaggle takes 50"):
        seal_dataset(tmp_path / "slug", "rows", {}, Hashes())


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    read: list[str] = []
    real = records.hash_file
    monkeypatch.setattr(records, "hash_file", lambda path: (read.append(path.name), real(path))[1])
    old, new, small, fresh = (tmp_path / name for name in ("old", "new", "small", "fresh"))
    for path, size in ((old, 2**20), (small, 10), (fresh, 2**20)):
        path.write_bytes(bytes(size))
    for path in (old, small):
        os.utime(path, ns=(1, 1))

    def ask() -> list[str]:
        read.clear()
        with Hashes() as hashes:
            found = [hashes.of(path) for path in (old, small, fresh)]
        assert found == [real(path) for path in (old, small, fresh)]
        return list(read)

    assert ask() == ["old", "small", "fresh"]
    assert ask() == ["small", "fresh"], "a small one costs nothing, a fresh one may change at the same tick"
    os.link(old, new)
    read.clear()
    assert Hashes().of(new) == real(old) and not read, "a link is the file"
    old.write_bytes(b"y" * 2**20)
    os.utime(old, ns=(2, 2))
    assert ask() == ["old", "small", "fresh"]


def test_what_was_copied_once_is_linked_but_never_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    source, before = tmp_path / "source" / "a", tmp_path / "before" / "slug" / "model" / "a"
    records.write_text(source, "same")
    for text in ("same", "evil"):
        records.write_text(before, text)
        target = tmp_path / text
        reuse_files(tmp_path / "before", target, Hashes())(source, target / "slug" / "model" / "a")
        placed = target / "slug" / "model" / "a"
        assert placed.read_text() == "same" and placed.samefile(before) == (text == "same")


def test_what_a_download_leaves_beside_a_model_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    for name in ("config.json", ".cache/huggingface/download/a.metadata", ".git/config"):
        records.write_text(tmp_path / "base" / name, "{}")
    slug = add_model(tmp_path / "bundle", "demo", tmp_path / "base", Hashes())
    manifest = json.loads((tmp_path / "bundle" / slug / "MANIFEST.json").read_text())
    assert [entry["path"] for entry in manifest["files"]][1:] == ["model/config.json"]
    assert [entry["path"] for entry in list_model(tmp_path / "base", Hashes())] == ["config.json"]


QWEN = "qwen-lm/qwen-3/transformers/8b/1"


def test_a_model_that_kaggle_has_is_named_and_not_packed(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_workspace(trained, tmp_path / "other")
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(other.root))
    encoder = "input/models/all-MiniLM-L6-v2"
    record = json.loads((other.output / SMOKE / "record.json").read_text())
    record["settings"]["config"]["sources"] = {encoder: QWEN}
    records.write_json(other.output / SMOKE / "record.json", record)
    manifest = read_manifest(Workspace(bundle_run(SMOKE).parents[2]))
    folders = {model["name"]: model["folder"] for model in manifest["models"]}
    assert folders["encoder"] == QWEN and set(manifest["sources"]) == {QWEN}
    slugs = {dataset["slug"] for dataset in manifest["datasets"]}
    assert slugs >= {folders["reranker"], folders["decision"]} and len(slugs) == 3, "and the code"
    files = {entry["path"]: entry["sha256"] for entry in manifest["sources"][QWEN]}
    assert files == records.hash_files(other.root / encoder)


def test_a_bundle_is_for_an_accelerator_that_the_competition_gives(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_workspace(trained, tmp_path / "other")
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(other.root))

    def read_code(accelerator: str | None = None) -> dict[str, Any]:
        folder = bundle_run(SMOKE, accelerator=accelerator)
        (path,) = folder.glob("*-code/MANIFEST.json")
        return dict(records.read_json(path))

    assert read_code()["runtime"]["accelerator"] == "NvidiaTeslaT4"
    for name in ("none", "NvidiaL4"):
        code = read_code(name)
        metadata = describe_kernel("abc-def", "alice", code["runtime"], code["competition"], [], [])
        assert metadata["machine_shape"] == ("" if name == "none" else name)
    record = json.loads((other.output / SMOKE / "record.json").read_text())
    record["settings"]["config"]["competition"]["accelerators"] = ["NvidiaL4"]
    records.write_json(other.output / SMOKE / "record.json", record)
    with pytest.raises(ValueError, match="the competition gives NvidiaL4"):
        bundle_run(SMOKE)
    assert read_code("NvidiaL4")["runtime"]["accelerator"] == "NvidiaL4"


@pytest.mark.parametrize("source", ["qwen-3", "a/b/c/d", "a/b/c/d/latest", "a/b/c/d/1/e", "a b/c/d/e/1"])
def test_what_is_no_source_of_kaggles_is_refused(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=r"owner/model/framework/variation/version"):
        find_model_sources({"input/models/x": source}, [tmp_path / "input/models/x"])
    records.write_text(tmp_path / "output/r/fold0/merged/record.json", "{}")
    with pytest.raises(ValueError, match="output/r/fold0/merged was made here"):
        find_model_sources({"output/r/fold0/merged": QWEN}, [tmp_path / "output/r/fold0/merged"])


def test_changed_weights_and_incomplete_runs_are_refused(trained: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("bundles", "rehearsals"))
    other = Workspace(root)
    settings = root / "output" / SMOKE / "fold0" / "merged" / "generation_config.json"
    kept = settings.read_bytes()
    settings.write_text("{}")
    done = other.cli("bundle", SMOKE)
    assert done.returncode != 0 and "was changed after it was made (generation_config.json)" in done.stderr
    settings.write_bytes(kept)
    decision = root / "output" / SMOKE / "decision" / "decision.json"
    decision.write_text(decision.read_text().replace('"weight": ', '"weight": 9'))
    done = other.cli("bundle", SMOKE)
    assert done.returncode != 0 and f"output/{SMOKE}/decision is not what {SMOKE} was made with" in done.stderr
    (root / "output" / SMOKE / "record.json").unlink()
    done = other.cli("bundle", SMOKE)
    assert done.returncode != 0 and "is no complete run" in done.stderr and "Traceback" not in done.stderr
    done = other.cli("bundle", "exp777_none")
    assert done.returncode != 0 and "there are: exp000_gpt2, exp001_retrieve" in done.stderr


def test_a_file_that_did_not_arrive_or_changed_is_named(trained: Workspace, tmp_path: Path) -> None:
    succeed(trained.cli("bundle", SMOKE))
    source = trained.output / "bundles" / SMOKE / "demo-misconceptions-exp002-rerank-smoke-code"
    folder = tmp_path / "code"
    shutil.copytree(source, folder)
    (folder / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not the file of the manifest"):
        check_dataset_files(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        check_dataset_files(folder)
