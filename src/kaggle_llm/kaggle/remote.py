"""Training on Kaggle's own GPUs: `kaggle-llm push EXP --train [key=value …]`.

Uploads the code and the models that the config names, runs train.py in a kernel, and downloads output/<run>/, as if it
had been trained here: records hold no absolute path, and the git state of this repository is sent along.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.arguments import parse_arguments, run_name
from kaggle_llm.base.config import load_config
from kaggle_llm.inference.run import import_predict
from kaggle_llm.kaggle.bundle import add_model, add_sources, add_wheels, make_slug, seal_dataset
from kaggle_llm.kaggle.client import find_owner
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.kernels import follow_kernel
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.push import push_notebook
from kaggle_llm.runtime.doctor import find_model_folders
from kaggle_llm.runtime.pins import DEFAULT, choose_accelerator, load_runtime

ARCHIVE, ABOUT = "run.tar", "run.json"  # left by the kernel: output/<run>/, and its hash


def train_remotely(experiment: str, words: Sequence[str]) -> Path:
    """output/<run>/ of `train.py WORDS`, made on Kaggle. words: the arguments of train.py.

    Raises FileExistsError where the run is complete here, OSError where the kernel fails or its output is not whole.
    """
    exp, arguments = paths.experiment_folder(experiment), parse_arguments(words)
    run = run_name(exp.name, arguments)
    if records.read_record(paths.run_folder(run)):
        raise FileExistsError(f"{run} is complete here: give it another name with run=name")
    config = asdict(load_config(exp / "config.yaml", import_predict(exp).Config, arguments.overrides, arguments.smoke))
    owner, competition = find_owner(), config["competition"]["name"]
    slug = make_slug(f"{competition}-{run}", "training")
    about = {"run": run, "experiment": exp.name, "competition": competition, "words": list(words)}
    folder = paths.pushes_folder(slug) / "datasets"
    with Hashes() as hashes:
        records.make_folder(folder, lambda to: fill_datasets(to, slug, about, config, hashes))
    datasets = sorted(path for path in folder.iterdir() if path.is_dir())
    notebook, code = paths.pushes_folder(slug) / "notebook.ipynb", records.read_json(folder / slug / MANIFEST)
    write_notebook(paths.root() / "submission" / "train_notebook.py", notebook)
    ref, version, _ = push_notebook(notebook, code, datasets, owner, slug)
    output = follow_kernel(ref, version)
    return take_over(run, output, code["content"])


def fill_datasets(target: Path, slug: str, about: Mapping[str, Any], config: Mapping[str, Any], hashes: Hashes) -> None:
    """The code, every model that the config names and that is no Kaggle model, and the runtime's wheels."""
    competition, sources = config["competition"], config.get("sources", {})
    models = {
        name: sources.get(name) or add_model(target, competition["name"], paths.absolute(name), hashes)
        for name in sorted({folder for _, folder in find_model_folders(config)})
    }
    wheels = add_wheels(target, DEFAULT)
    add_sources(target / slug, paths.experiment_folder(about["experiment"]))
    records.write_json(target / slug / records.GIT, records.git_state())
    manifest = {
        **about,
        "models": models,
        "wheels": wheels,
        "competition_folder": competition["dir"] or f"input/{competition['name']}",
        "runtime": asdict(load_runtime(DEFAULT, choose_accelerator(config))),
        "sources": [name for name in models.values() if "/" in name],
    }
    seal_dataset(target / slug, "code", manifest, hashes)


def take_over(run: str, output: Path, content: str) -> Path:
    """Unpack the kernel's output as output/<run>/. Raises OSError where it is not whole, or of another training."""
    folder = paths.relative(output)
    if not (output / ABOUT).is_file() or not (output / ARCHIVE).is_file():
        raise OSError(f"{folder} has no {ABOUT} and {ARCHIVE}: its log shows how far the training came")
    about = records.read_json(output / ABOUT)
    if (about["run"], about["content"]) != (run, content):
        raise OSError(f"{folder} is of another training ({about['run']}): start the same command again in a minute")
    if records.hash_file(output / ARCHIVE) != about["sha256"]:
        raise OSError(f"{folder}/{ARCHIVE} did not arrive whole: start the same command again")
    with tempfile.TemporaryDirectory(dir=paths.root() / "output", prefix=".unpacked-") as unpacked:
        with tarfile.open(output / ARCHIVE) as archive:
            archive.extractall(unpacked, filter="data")

        parent = paths.run_folder(run) / "parent.json"
        if parent.is_file():
            shutil.copyfile(parent, Path(unpacked) / run / parent.name)

        def move(target: Path) -> None:
            target.rmdir()
            (Path(unpacked) / run).rename(target)

        records.make_folder(paths.run_folder(run), move)
    return paths.run_folder(run)
