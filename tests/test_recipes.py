"""Every script of docs/recipes.md runs as it stands there, on pico models under the demo's names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, copy_workspace, succeed

TEXT = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.*?)$.*?^```python\n(.*?)^```$", TEXT, flags=re.M | re.S))
FIGURES = {
    "An encoder reads the competition's texts (masked language modelling)": r"not read: \d\.\d+ before, \d\.\d+ after",
    "The better of two answers becomes likelier (DPO), or gets a higher number (reward model)": (
        r"(?s)dpo: .* in [01]\.\d\d of .*reward: .* in [01]\.\d\d of .*"
        r"base model: [01]\.\d\d; the longer answer: [01]\.\d\d"
    ),
}


def test_every_recipe_is_run() -> None:
    assert list(RECIPES) == list(FIGURES) and TEXT.count("```python") == len(RECIPES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FIGURES)
def test_a_recipe_runs_as_it_stands(name: str, bare: Workspace, tmp_path: Path) -> None:
    workspace = copy_workspace(bare, tmp_path / "root")
    (workspace.root / "recipe.py").write_text(RECIPES[name])
    assert re.search(FIGURES[name], succeed(workspace.python("recipe.py")))
