"""The documents' code does what they say of it; their links, commands and settings exist."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.forms import RankedItems
from kaggle_llm.competition.metric import by_row, mean_metric
from kaggle_llm.competition.metrics import recall
from kaggle_llm.competition.rankings import make_ranking, top
from kaggle_llm.inference.cross_fit import cross_fit

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("exp/*.md")]
DOCS += [*ROOT.glob("src/**/*.md"), *ROOT.glob("tests/**/*.md")]
TEXT = "\n".join(path.read_text() for path in (*DOCS, *ROOT.glob("exp/*/train.py")))  # whose docstrings advise


def run_example(file: str, heading: str) -> dict[str, Any]:
    """What the first code under a heading defines."""
    section = (ROOT / file).read_text().partition(f" {heading}\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.S)
    assert code, f"{file} has no code under {heading!r}"
    names = {"RankedItems": RankedItems, "recall": recall, "by_row": by_row, "mean_metric": mean_metric}
    names |= {"top": top, "dataclass": dataclass}
    exec(code[1], names)
    return names


def test_the_metric_of_the_documents_is_the_share_that_is_found() -> None:
    metric = run_example("docs/competition.md", "A metric of your own")["DemoMisconceptions"].also[0]
    answers = make_ranking(["a", "b"], [["x", "y", "z", "w"], ["x"]], [[4, 3, 2, 1], [1]])
    truth = pl.DataFrame({"id": ["a", "b"], "items": [["z", "w"], ["x"]]})
    assert metric.score(answers, truth) == pytest.approx((0.5 + 1) / 2)


def test_the_decision_of_the_documents_is_fitted_and_applied() -> None:
    decision = run_example("exp/README.md", "A decision of your own")["decision"](None, None)
    ids = [f"r{n}" for n in range(40)]
    scored = make_ranking(ids, [["x", "y", "z"]] * 40, [[3, 2, 1]] * 40)
    truth = pl.DataFrame({"id": ids, "items": [["y"]] * 40})
    decided, shipped, unfitted = cross_fit(decision, scored, truth, {row: row for row in ids}, recall(5))
    assert shipped.value.items == 2 and unfitted == []
    assert decided.apply(scored)["items"].to_list() == [["x", "y"]] * 40


def list_anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.S)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in list_anchors(target.read_text()), f"{path.name}: {link}"


def test_a_room_says_what_it_does_in_80_lines() -> None:
    assert not [path for path in ROOT.glob("src/**/README.md") if len(path.read_text().splitlines()) > 80]


def test_every_command_exists() -> None:
    from kaggle_llm.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"kaggle-llm ([a-z]+)", TEXT)) <= known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {word for words in re.findall(r"(?:`|^)make ([a-z -]+)", TEXT, re.M) for word in words.split()} <= targets


def list_fields() -> dict[str, dict[str, set[str]]]:
    """Class → its fields, with the names of their types; classes of one name, such as Config, are taken as one."""
    trees = [ast.parse(path.read_text()) for path in (*ROOT.glob("src/**/*.py"), *ROOT.glob("exp/*/predict.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    classes: dict[str, dict[str, set[str]]] = {node.name: {} for node in nodes}
    for node in nodes:
        for part in (part for part in node.body if isinstance(part, ast.AnnAssign)):
            types = classes[node.name].setdefault(ast.unparse(part.target), set())
            types.update(re.findall(r"\w+", ast.unparse(part.annotation)))
    for node in nodes:  # a base class stands above those that inherit from it
        inherited = [classes.get(ast.unparse(base), {}) for base in node.bases]
        classes[node.name] = {
            name: types for fields in (*inherited, classes[node.name]) for name, types in fields.items()
        }
    return classes


def is_setting(key: str, classes: dict[str, dict[str, set[str]]]) -> bool:
    fields = classes["Config"] | classes["BaseConfig"]
    for name in key.split("."):
        if name not in fields:
            return False
        if "dict" in fields[name]:
            return True
        fields = {inner: types for kind in fields[name] for inner, types in classes.get(kind, {}).items()}
    return True


def test_every_setting_exists() -> None:
    classes = list_fields()
    keys = set(re.findall(r"(?<![\w./])([a-z]+\.[a-z_]+(?:\.[a-z_]+)*)(?==|`|: )", TEXT))
    keys = {key for key in keys if key.split(".")[0] in classes["Config"] | classes["BaseConfig"]}
    keys = {key for key in keys if not re.search(r"\.(py|md|csv|json|yaml)$", key)}
    assert len(keys) > 50 and not [key for key in keys if not is_setting(key, classes)]
    assert is_setting("lora.r", classes) and not is_setting("lora.rank", classes)
