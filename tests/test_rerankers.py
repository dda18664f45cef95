"""exp002's rerankers, each by one setting: trained, bundled and replayed offline, on pico models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from light import answer_offline
from workspace import Workspace, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SETTINGS = ["cross_encoder", *(pytest.param(name, marks=pytest.mark.release) for name in ("windows", "both"))]


@pytest.mark.parametrize("reranker", SETTINGS)
def test_a_reranker_is_one_setting(trained: Workspace, tmp_path: Path, reranker: str) -> None:
    words = ("exp002_rerank", "--smoke", f"reranker={reranker}", f"run={reranker}")
    said = succeed(trained.train(*words))
    run = f"exp002_rerank--{reranker}-smoke"
    folder = trained.output / run
    metrics, record = (json.loads((folder / name).read_text()) for name in ("metrics.json", "record.json"))
    assert metrics["before"] is not None
    shipped = {model["name"] for model in record["settings"]["ship"]}
    steps = json.loads((folder / "parity.json").read_text())["steps"]
    if reranker == "cross_encoder":
        assert shipped == {"encoder", "cross_encoder", "decision"} and not steps
    else:
        (step,) = steps
        assert shipped == {"encoder", "reranker", "decision"} and step["status"] == "passed", said
        assert step["differences"]["prompts"] > step["differences"]["other_prompts"]
    again = succeed(trained.train(*words))
    assert "is complete, reused" in again and "is made again" not in again
    succeed(trained.cli("bundle", run))
    checks = answer_offline(trained, run, tmp_path / "site", replay=0)
    assert "same lists" in checks["replay"].detail
