"""The benchmarks run, small, and write the figures that they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCITLDR = ROOT.parent / "shared" / "data" / "scitldr"
FINETUNE = ("usual-script", "trl", "trl-packing", "kaggle_llm")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SCITLDR.is_dir(), reason="real data is absent: ../shared/data/scitldr")
def test_finetune_gives_every_contender_the_same_rows_and_measures_what_they_learned(tmp_path: Path) -> None:
    # 10 rows are two steps; the first one's learning rate is 0.
    command = [sys.executable, HERE / "finetune.py", "--json", tmp_path / "figures.json", "--rows", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "finetune" and {"machine", "versions"} <= set(report)
    assert [len(report["rows"][name]) for name in ("train", "held_out")] == [10, 10]
    assert {"python", "torch", "transformers", "trl", "peft"} <= set(report["versions"])
    assert tuple(contender["name"] for contender in report["contenders"]) == FINETUNE
    assert all(contender["name"] in done.stdout for contender in report["contenders"])
    first = report["contenders"][0]["figures"]
    for contender in report["contenders"]:
        figures = contender["figures"]
        assert figures["tokens_per_second"] == pytest.approx(figures["useful_tokens"] / figures["seconds"])
        assert figures["useful_tokens"] == first["useful_tokens"] <= 10 * 512 and figures["steps"] == 2
        assert figures["peak_rss_mb"] > 500, "the model's weights alone are that large"
        assert figures["loss_before"] == pytest.approx(first["loss_before"]), "one function, one base model"
        assert figures["loss"] != figures["loss_before"], "the adapter that was trained is the one that is measured"
    assert report["contenders"][2]["settings"]["packing_strategy"] == "bfd"
