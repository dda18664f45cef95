"""Without src/kaggle_llm_demo, the generated competitions' package, an experiment trains and is bundled as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, copy_workspace, succeed

GONE = 'raise ModuleNotFoundError("No module named kaggle_llm_demo: it was removed")\n'


@pytest.mark.slow
def test_a_template_without_the_demo_works(bare: Workspace, tmp_path: Path) -> None:
    workspace = copy_workspace(bare, tmp_path / "root")
    source = workspace.root / "src"
    shutil.copytree(ROOT / "src" / "kaggle_llm", source / "kaggle_llm", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "kaggle_llm_demo").mkdir()
    (source / "kaggle_llm_demo" / "__init__.py").write_text(GONE)
    path = {"PYTHONPATH": str(source)}
    assert "it was removed" in workspace.python("-c", "import kaggle_llm_demo", **path).stderr
    succeed(workspace.train("exp001_retrieve", "--smoke", **path))
    succeed(workspace.cli("bundle", "exp001_retrieve--smoke", **path))
    assert list(workspace.output.glob("bundles/*/*-code/src/kaggle_llm")), "the package travels"
    assert not list(workspace.output.glob("bundles/**/kaggle_llm_demo")), "the demo does not"
