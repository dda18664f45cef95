"""The benchmarks run, small, and write the figures that they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sources import find_source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MERGE = ("cp", "peft", "mergekit", "kaggle_llm")
SMOLLM2 = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
METHODS = ("linear", "slerp", "ties")
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FINETUNE = ("usual-script", "trl", "trl-packing", "kaggle_llm")


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_finetune_gives_every_contender_the_same_rows_and_measures_what_they_learned(tmp_path: Path) -> None:
    # 10 rows are two steps; the first one's learning rate is 0.
    command = [sys.executable, HERE / "finetune.py", "--json", tmp_path / "figures.json", "--rows", "10"]
    command += ["--rounds", "1"]
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


@pytest.mark.release
@pytest.mark.timeout(900)
def test_merge_measures_every_contender_and_how_far_it_is_from_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "merge.py", "--json", tmp_path / "figures.json", "--gb", "0.03", "--repeat", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "merge" and {"machine", "versions"} <= set(report)
    assert report["checkpoint"]["bytes"] > 2e7
    peers = PEERS.is_file()
    found = {one["name"]: one["figures"] for one in report["contenders"]}
    assert tuple(found) == tuple(name for name in MERGE if peers or name != "mergekit")
    assert all(name in done.stdout for name in MERGE), "or it is said that one was left out"
    for name, figures in found.items():
        assert figures["seconds"] > 0 and figures["peak_rss_mb"] > 10
        assert figures["max_abs_diff"] == 0 if name == "cp" else figures["max_abs_diff"] < 2**-9
    assert found["kaggle_llm"]["differing_from_peft"] == found["kaggle_llm"]["differing"] == 0
    soups = {one["name"]: one["figures"] for one in report["checkpoints"]}
    who = ("mergekit", "kaggle_llm") if peers else ("kaggle_llm",)
    assert set(soups) == {f"{one}-{method}" for one in who for method in METHODS}
    if peers:
        assert soups["kaggle_llm-linear"]["max_abs_diff"] == 0
        assert soups["kaggle_llm-slerp"]["max_abs_diff"] <= 2**-11, "one step of bfloat16 at 0.1"
        elements = report["checkpoint"]["bytes"] / 2
        assert soups["kaggle_llm-ties"]["differing"] < 0.03 * elements, "but for equals at the cut"


@pytest.mark.release
@pytest.mark.timeout(900)
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="SmolLM2 is absent: make models")
def test_choice_scoring_gives_every_contender_the_same_prompts_and_compares_what_they_say(tmp_path: Path) -> None:
    names = ("usual-loop", "sorted-loop", "kaggle_llm")  # vLLM starts in other tests
    command = [sys.executable, HERE / "choice_scoring.py", "--json", tmp_path / "figures.json", "--rounds", "2"]
    command += ["--questions", "2", "--candidates", "5", "--contenders", ",".join(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "choice_scoring" and {"machine", "versions"} <= set(report)
    assert report["prompts"]["count"] == 10 and report["prompts"]["tokens_each_once"] < report["prompts"]["tokens"]
    found = {one["name"]: one["figures"] for one in report["contenders"]}
    assert tuple(found) == names and all(name in done.stdout for name in names)
    for contender in report["contenders"]:
        low, high = contender["spread"]["prompts_per_second"]
        assert low <= contender["figures"]["prompts_per_second"] <= high and len(contender["runs"]) == 2
        assert contender["ratios"]["prompts_per_second"]["median"] > 0
        for run in contender["runs"]:
            assert run["prompts_per_second"] == pytest.approx(10 / run["seconds"])
    for name, figures in found.items():
        assert figures["peak_rss_mb"] > 500, "the model's weights alone are that large"
        assert figures["max_abs_diff"] < 1e-3
        if name != "sorted-loop":  # on one thread it may compute the very same
            assert (figures["max_abs_diff"] == 0) == (name == "usual-loop"), "other batches, other rounding"


@pytest.mark.release
@pytest.mark.timeout(900)
def test_scaling_measures_what_the_rehearsal_of_each_size_took(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "scaling.py", "--json", tmp_path / "figures.json", "--rows", "20", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "scaling" and {"machine", "versions"} <= set(report)
    ((name, figures),) = [(one["name"], one["figures"]) for one in report["contenders"]]
    assert name == "kaggle_llm" and figures["peak_rss_mb"] > 100 and figures["start_seconds"] > 0
    sizes = report["contenders"][0]["sizes"]
    assert [size["rows"] for size in sizes] == [20, 60]
    (step,) = figures["steps"]
    assert step["seconds_per_1000_rows"] == pytest.approx(25 * (sizes[1]["seconds"] - sizes[0]["seconds"]))


@pytest.mark.release
@pytest.mark.timeout(300)
def test_the_bundle_benchmark_measures_both_calls(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "bundle.py", "--json", tmp_path / "figures.json", "--gigabytes", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "bundle" and {"machine", "versions"} <= set(report)
    figures = {one["name"]: one["figures"] for one in report["contenders"]}
    assert set(figures) == {"cp-sha256", "kaggle_llm"} and figures["cp-sha256"]["seconds"] > 0
    assert figures["kaggle_llm"]["seconds_first"] > figures["kaggle_llm"]["seconds"] > 0


@pytest.mark.release
@pytest.mark.timeout(600)
def test_lexical_compares_both_ways_to_split_words_on_the_same_searches(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "lexical.py", "--json", tmp_path / "figures.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    plain, ours = (contender["figures"] for contender in report["contenders"])
    assert set(plain) == set(ours) == {"search_seconds", *report["differences"]}
    for name, (difference, low, high) in report["differences"].items():
        assert difference == pytest.approx(ours[name] - plain[name]) and low <= difference <= high


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_retrieval_measures_every_contender_on_the_collections_that_are_there(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "retrieval.py", "--json", tmp_path / "figures.json", "--scale", "0.01"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["benchmark"] == "retrieval" and {"machine", "versions", "queries"} <= set(report)
    found = {one["name"]: one["figures"] for one in report["contenders"]}
    assert {"plain", "kaggle_llm"} <= set(found)
    for figures in found.values():
        assert {"index_seconds_100k", "search_seconds_100k", "peak_rss_mb_1m"} <= set(figures)
    assert set(found["kaggle_llm"]) == {*found["plain"], "reopen_seconds_bm25_100k"}
    assert "search_seconds_bm25_100k" in found["plain"]
    assert "faiss-flat" not in found or found["faiss-flat"]["recall_100k"] == 1 > found["faiss-ivf"]["recall_100k"]
    assert "faiss-flat" in found or "Faiss is left out" in done.stdout


@pytest.mark.release
@pytest.mark.timeout(300)
def test_a_batch_in_parts_has_the_gradient_of_the_batch_at_once(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "gradcache.py", "--json", tmp_path / "figures.json", "--pairs", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    whole, parts = (contender["figures"] for contender in report["contenders"])
    assert report["benchmark"] == "gradcache" and parts["peak_rss_mb"] < whole["peak_rss_mb"]
    assert (
        parts["loss"] == pytest.approx(whole["loss"]) and 0 < parts["max_abs_diff"] < 1e-4 * whole["largest_gradient"]
    )


@pytest.mark.release
@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.skipif(not find_source("scitldr").is_dir(), reason="real data is absent: see tests/README.md")
def test_tricks_are_measured_beside_none(tmp_path: Path) -> None:
    command = [sys.executable, HERE / "tricks.py", "--json", tmp_path / "figures.json"]
    command += ["--papers", "4", "3", "--seeds", "1", "--tricks", "ema,class_weight"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "figures.json").read_text())
    figures = {each["name"]: each["figures"] for each in report["contenders"]}
    assert list(figures) == ["none", "none (few of the middle)", "ema", "class_weight"]
    for name, against in (("ema", "none"), ("class_weight", "none (few of the middle)")):
        plain, tricked = figures[against], figures[name]
        assert plain["difference"] == plain["low"] == plain["high"] == 0
        assert tricked["low"] <= tricked["difference"] <= tricked["high"]
        assert tricked["accuracy"] - plain["accuracy"] == pytest.approx(tricked["difference"])
