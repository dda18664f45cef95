"""Bundles: names, manifests, what travels and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, succeed

from kaggle_llm.kaggle.bundle import make_slug
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import check_dataset
from kaggle_llm.records import hash_file

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
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"MANIFEST.json"}
    assert {entry["path"] for entry in manifest["files"]} == on_disk
    for entry in manifest["files"]:
        path = bundle / entry["path"]
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, hash_file(path))
    code, *weights = sorted(manifest["datasets"], key=lambda dataset: not dataset["slug"].endswith("-code"))
    assert code["slug"] == "demo-misconceptions-exp002-rerank-smoke-code"
    assert all(re.fullmatch(r"demo-misconceptions-weights-[0-9a-f]{8}", dataset["slug"]) for dataset in weights)
    assert set(manifest["models"]) == {"encoder", "reranker", "blend"}
    for dataset in manifest["datasets"]:
        folder = bundle / dataset["folder"]
        check_dataset(folder)
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


def test_changed_weights_and_incomplete_runs_are_refused(trained: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("bundles", "rehearsals"))
    other = Workspace(root)
    weight = root / "output" / SMOKE / "fold0" / "blend" / "blend.json"
    weight.write_text('{"weight": 9}')
    done = other.cli("bundle", SMOKE)
    assert done.returncode != 0 and "was changed after it was made (blend.json)" in done.stderr
    (root / "output" / SMOKE / "record.json").unlink()
    done = other.cli("bundle", SMOKE)
    assert done.returncode != 0 and "is no complete run" in done.stderr and "Traceback" not in done.stderr
    done = other.cli("bundle", "exp777_none")
    assert done.returncode != 0 and "there are: exp001_retrieve" in done.stderr


def test_a_file_that_did_not_arrive_or_changed_is_named(trained: Workspace, tmp_path: Path) -> None:
    succeed(trained.cli("bundle", SMOKE))
    source = trained.output / "bundles" / SMOKE / "demo-misconceptions-exp002-rerank-smoke-code"
    folder = tmp_path / "code"
    shutil.copytree(source, folder)
    (folder / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not the file of the manifest"):
        check_dataset(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        check_dataset(folder)
