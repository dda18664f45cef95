"""An error in somebody's own code shows where; what the package refuses is one line, and where to read the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.base.errors import print_error

RAISE = "raise ValueError('mine')"


@pytest.fixture
def workspace(bare: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(bare, tmp_path / "root")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new, 1))


@pytest.mark.usefixtures("fast_python")
def test_an_error_in_predict_py_shows_its_line(workspace: Workspace) -> None:
    predict = workspace.root / "exp" / "exp001_retrieve" / "predict.py"
    edit(predict, "    return loaded.search_each(rows) if", f"    {RAISE}\n    return loaded.search_each(rows) if")
    done = workspace.train("exp001_retrieve", "--smoke")
    assert done.returncode == 1 and "Traceback" in done.stderr and RAISE in done.stderr
    assert f'"{predict}"' in done.stderr and "--debug" not in done.stderr


@pytest.mark.usefixtures("fast_python")
def test_what_the_package_refuses_is_one_line_with_its_traceback_in_the_run(workspace: Workspace) -> None:
    predict = workspace.root / "exp" / "exp001_retrieve" / "predict.py"
    edit(predict, "else loaded.search(rows)", "else loaded.search(rows).head(2)")
    done = workspace.train("exp001_retrieve", "--smoke")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "8 rows asked, 2 rows ranked" in line and "where: output/exp001_retrieve--smoke/error.txt" in line
    assert "check_answer" in (workspace.output / "exp001_retrieve--smoke" / "error.txt").read_text()


def test_a_library_that_is_called_from_ones_own_code_counts_as_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "exp" / "exp009_mine" / "predict.py"
    code.parent.mkdir(parents=True)
    for text, shown in (
        ("import json\njson.loads('{')\n", True),
        ("from kaggle_llm.base import paths\npaths.model_folder('x')\n", False),
    ):
        code.write_text(text)
        try:
            exec(compile(text, str(code), "exec"), {})
        except Exception:
            kind, error, where = sys.exc_info()
            assert kind is not None and error is not None
            print_error(None, kind, error, where)
        assert ("Traceback" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_says_the_idea_and_starts_nothing(workspace: Workspace, word: str) -> None:
    said = succeed(workspace.train("exp001_retrieve", word))
    train = workspace.root / "exp" / "exp001_retrieve" / "train.py"
    idea = train.read_text().split('"""')[1].splitlines()[0]
    assert idea in said and "key=value" in said
    assert not (workspace.output / "exp001_retrieve").exists()
