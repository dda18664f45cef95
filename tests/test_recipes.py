"""Every recipe of docs/recipes.md runs as it stands there, on pico models under the demo's names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, copy_workspace, succeed

DOCS = ROOT / "docs"
FIGURES = {
    "masked_lm.py": r"not read: \d\.\d+ before, \d\.\d+ after",
    "preference.py": (
        r"(?s)dpo: .* in [01]\.\d\d of .*reward: .* in [01]\.\d\d of .*"
        r"base model: [01]\.\d\d; the longer answer: [01]\.\d\d"
    ),
}


def test_every_recipe_stands_on_the_page_and_is_run() -> None:
    linked = set(re.findall(r"\]\(recipes/(\w+\.py)\)", (DOCS / "recipes.md").read_text()))
    assert linked == {path.name for path in DOCS.glob("recipes/*.py")} == set(FIGURES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FIGURES)
def test_a_recipe_runs_as_it_stands(name: str, bare: Workspace, tmp_path: Path) -> None:
    workspace = copy_workspace(bare, tmp_path / "root")
    shutil.copy(DOCS / "recipes" / name, workspace.root)
    assert re.search(FIGURES[name], succeed(workspace.python(name)))
