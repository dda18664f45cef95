"""The rules of the house: imports run one way, heavy imports are lazy, no absolute paths, runnable experiments."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "kaggle_llm"
# The experiments that are shipped; what a competitor puts beside them keeps to no rule of this file.
SHIPPED = (
    "exp000_gpt2 exp001_retrieve exp002_rerank exp003_summarize exp004_judge exp005_tags exp006_open_book "
    "exp007_blend exp008_heads exp009_linear exp010_embed"
)
EXPERIMENTS = [ROOT / "exp" / name for name in SHIPPED.split()]
HELPERS = {"exp000_gpt2": {"model.py", "learn.py"}}  # a model that is written out beside train.py

# A module may import from its own room and from rooms before it.
ORDER = ["base", "competition", "engines", "inference", "retrieval", "training", "tasks", "weights", "decisions"]
ORDER += ["experiment", "runtime", "kaggle", "rehearsal", "cli"]
HEAVY = {"torch", "transformers", "vllm", "sentence_transformers", "peft", "polars", "omegaconf", "sklearn", "bm25s"}
HEAVY |= {
    "xgrammar",
    "trl",
    "datasets",
    "datasketch",
    "wandb",
    "rouge_score",
    "sacrebleu",
    "scipy",
    "matplotlib",
    "compressed_tensors",
    "bitsandbytes",
    "lightgbm",
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a tree imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module: a relative one would hide its room"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def wrong_way(source: str, owner: str) -> list[str]:
    """Imports of `owner`'s source that run against ORDER. competition/<name>.py is loaded by name, never imported."""
    rooms = {name.split(".")[1] for name in imports(ast.parse(source)) if name.startswith("kaggle_llm.")}
    unknown = rooms - set(ORDER)
    return sorted(unknown | {name for name in rooms - unknown if ORDER.index(name) > ORDER.index(owner)})


def imports_at_start(source: str) -> Iterator[str]:
    """What importing the source imports: outside functions and `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    top = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    nodes = [part for node in top for part in (node.body if isinstance(node, ast.ClassDef) else [node])]
    outside = ast.Module([node for node in nodes if not isinstance(node, ast.FunctionDef)], [])
    return imports(outside)


def heavy_at_start(source: str) -> list[str]:
    return sorted({name.split(".")[0] for name in imports_at_start(source)} & HEAVY)


def test_imports_run_one_way() -> None:
    assert {str(path): names for path in modules() if (names := wrong_way(path.read_text(), room(path)))} == {}


def find_circle(sources: dict[str, str]) -> list[str]:
    """Modules that cannot be imported in every order: each imports the next when it starts, the last one the first.

    sources: module → its code.
    """
    starts = {module: sources.keys() & set(imports_at_start(source)) for module, source in sources.items()}
    while leaves := [module for module, needs in starts.items() if not needs]:
        starts = {module: needs - set(leaves) for module, needs in starts.items() if module not in leaves}
    return sorted(starts)


def test_modules_can_be_imported_in_every_order() -> None:
    """The programs of tests have the package loaded: none of them would see that its own order cannot be."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules()}
    names = {name: path for name, path in names.items() if path.stem != "__init__"}
    assert find_circle({name: path.read_text() for name, path in names.items()}) == []
    circle = {"a.b": "import a.c", "a.c": "from a.d import x", "a.d": "from a import b", "a.e": "import a.b"}
    assert find_circle(circle) == ["a.b", "a.c", "a.d", "a.e"]
    assert find_circle({**circle, "a.d": "def f():\n    from a import b"}) == []


def test_the_one_way_rule_can_fail() -> None:
    assert wrong_way("from kaggle_llm.competition.folds import assign_folds", "base") == ["competition"]
    assert wrong_way("def f():\n    import kaggle_llm.experiment", "inference") == ["experiment"]
    assert wrong_way("from kaggle_llm import rehearsal", "engines") == ["rehearsal"]


def test_heavy_libraries_are_imported_inside_functions() -> None:
    assert {str(path): names for path in modules() if (names := heavy_at_start(path.read_text()))} == {}


def test_the_heavy_rule_can_fail() -> None:
    assert heavy_at_start("import torch.nn\nfrom polars import col") == ["polars", "torch"]
    assert heavy_at_start("class A:\n    import peft\n    def f(self):\n        import torch") == ["peft"]
    assert heavy_at_start("if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch") == []


def test_nothing_needs_the_demo_package() -> None:
    """`rm -r src/kaggle_llm_demo` leaves a template: test_demo_removed.py runs one."""
    files = [*modules(), *(ROOT / "exp").rglob("*.py"), *(ROOT / "submission").glob("*.py")]
    assert not [path for path in files if "kaggle_llm_demo" in set(imports(ast.parse(path.read_text())))]
    assert "kaggle_llm_demo" in set(imports(ast.parse("import kaggle_llm_demo"))), "this rule can fail"


def test_no_experiment_imports_another_and_none_names_itself() -> None:
    for experiment in EXPERIMENTS:
        for path in experiment.glob("*.py"):
            for name in imports(ast.parse(path.read_text())):
                assert not name.startswith("exp"), f"{path}: an experiment imports nothing of exp/"
            assert experiment.name not in path.read_text(), f"{path} names its own folder: a copy would refer to it"
        lines = [line for line in (experiment / "config.yaml").read_text().splitlines() if not line.startswith("#")]
        assert experiment.name not in "\n".join(lines)


def absolute_paths(text: str, path: Path) -> list[str]:
    absolute = re.compile(r"""["'`(= ](/(?:home|root|work|mnt|data|Users|kaggle|opt|tmp)\b)""")
    return absolute.findall(strip_comments(text, path))


def test_no_absolute_path_and_kaggle_in_one_file() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in (ROOT / "src", ROOT / "submission", *EXPERIMENTS)
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml") and absolute_paths(path.read_text(), path)
    }
    assert found == {"submission/notebook.py"}


def test_the_path_rule_can_fail() -> None:
    assert absolute_paths("model = '/kaggle/input/x'", Path("a.py")) == ["/kaggle"]
    assert absolute_paths("base: /home/me/model", Path("a.yaml")) == ["/home"]
    assert absolute_paths('"""Reads /kaggle/input."""', Path("a.py")) == []


def strip_comments(text: str, path: Path) -> str:
    """Code without docstrings: they may speak of Kaggle's folders."""
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def experiment_faults(experiment: Path) -> list[str]:
    """What an experiment holds beyond its idea."""
    train = (experiment / "train.py").read_text()
    faults = [] if len(train.splitlines()) <= 60 else ["train.py is long"]
    if not ast.get_docstring(ast.parse(train)):
        faults.append("no idea in the first docstring line")
    if not train.rstrip().endswith('if __name__ == "__main__":\n    main()'):
        faults.append("main is not guarded: spawned workers would run it again")
    for name in ("train.py", "predict.py"):
        tree = ast.parse((experiment / name).read_text())
        loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
        if any(not isinstance(loop, ast.For) or ast.unparse(loop.iter) != "experiment.parts()" for loop in loops):
            faults.append(f"{name} has a loop: loops go to src/")
        if "argparse" in set(imports(tree)):
            faults.append(f"{name} parses arguments")
    return faults


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
def test_an_experiment_is_only_its_idea(experiment: Path) -> None:
    found = {path.name for path in experiment.iterdir()} - {"__pycache__"}
    assert found == {"config.yaml", "train.py", "predict.py"} | HELPERS.get(experiment.name, set())
    assert experiment_faults(experiment) == []


def test_the_experiment_rule_can_fail(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import argparse\nfor i in range(3):\n    pass\nmain()\n")
    (tmp_path / "predict.py").write_text("while True:\n    pass\n")
    assert len(experiment_faults(tmp_path)) == 5


def test_a_program_that_the_package_runs_is_a_dependency() -> None:
    """`init` ran ruff, which only this repository's locks installed."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {name for path in modules() for name in re.findall(r'sys.executable, "-m", "(\w+)"', path.read_text())}
    assert {"ruff", "uv"} <= found
    assert found - {"pip"} <= {re.split(r"[>=]", line)[0] for line in asked}, "pip is where a venv is"


@pytest.mark.slow
def test_a_competitors_own_copy_may_hold_what_ours_may_not(tmp_path: Path) -> None:
    """This file, run in a repository with such a copy: loops, helpers, a long train.py, its own name, a path."""
    for name in ("exp", "src", "submission", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    own = tmp_path / "exp" / "exp014_own"
    shutil.copytree(ROOT / "exp" / "exp002_rerank", own)
    (own / "features.py").write_text("for name in ('a', 'b'):\n    print(name)\n")
    (own / "notes.md").write_text("exp014_own: it is better.\n")
    for name in ("train.py", "predict.py"):
        with (own / name).open("a") as file:
            file.write("\n\nwhile False:\n    print('/home/me/exp014_own')\n" + "\n" * 60)
    assert len(experiment_faults(own)) == 4
    command = [forks.python(), "-m", "pytest", "-vv", "-p", "no:xdist", "--basetemp", str(tmp_path / "pytest")]
    command += ["tests/test_house.py", "-k", "experiment or path or readme"]  # the rest looks at src/ alone
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "exp002_rerank" in done.stdout and "exp014_own" not in done.stdout


FITS = """
import os, sys
from pathlib import Path
from kaggle_llm.base.config import load_config
for folder in sys.argv[1:]:
    sys.modules.pop("predict", None)
    sys.path[0] = folder
    from predict import Config
    assert sys.modules["predict"].__file__ == f"{folder}/predict.py"
    for smoke in (False, True):
        load_config(Path(folder, "config.yaml"), Config, smoke=smoke)
"""


def test_every_shipped_config_fits_its_schema() -> None:
    command = [forks.python(), "-c", FITS, *map(str, EXPERIMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


CATCH_ALL = {"one", "found", "place", "what", "thing"}  # a name says what it holds


def catch_all_names(source: str) -> list[str]:
    """Variables and parameters of such a name."""
    tree = ast.parse(source)
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return sorted(CATCH_ALL & {*stored, *(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))})


def test_no_variable_has_a_name_that_could_hold_anything() -> None:
    files = [*modules(), *(path for experiment in EXPERIMENTS for path in experiment.glob("*.py"))]
    assert {path.name: names for path in files if (names := catch_all_names(path.read_text()))} == {}
    assert catch_all_names("def f(found):\n    for one in found:\n        thing: int = 1") == ["found", "one", "thing"]


def test_no_except_swallows_everything() -> None:
    """But for note_errors, where it becomes a failed check."""
    for path in modules():
        if path.name == "checks.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else ""
                assert names not in ("", "Exception"), f"{path}:{node.lineno}: name what is expected"


def test_the_readme_is_short_and_names_only_make_targets_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert len(readme.splitlines()) <= 160
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", readme, re.M)) <= targets


def test_the_notebook_is_made_from_its_source(tmp_path: Path) -> None:
    import nbformat

    from kaggle_llm.kaggle.notebook import write_notebook

    source = (ROOT / "submission" / "notebook.py").read_text()
    write_notebook(ROOT / "submission" / "notebook.py", tmp_path / "a.ipynb")
    write_notebook(ROOT / "submission" / "notebook.py", tmp_path / "b.ipynb")
    notebook = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()
    assert len(notebook.cells) <= 4
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    expected = [part.strip() for part in re.split(r"^# %%.*$", source, flags=re.M)][1:]
    assert code == [part for part in expected if not part.startswith("# #")]
    assert not list(ROOT.glob("submission/*.ipynb")), "the .ipynb is generated, never kept"
