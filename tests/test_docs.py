"""The code in the documents does what they say of it."""

from __future__ import annotations

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
