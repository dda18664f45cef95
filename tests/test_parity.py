"""Parity passes what is the same, and names what is not; a run that did not pass is not pushed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner
from workspace import Workspace, succeed

from kaggle_llm.base.config import load_config
from kaggle_llm.cli import app
from kaggle_llm.competition.competition import load_competition
from kaggle_llm.competition.rankings import make_values
from kaggle_llm.inference.run import import_predict
from kaggle_llm.weights import parity
from kaggle_llm.weights.differences import Differences, divergence, find_differences, log_odds, rank_correlation
from kaggle_llm.weights.headroom import LIMIT, Headroom, measure_headroom
from kaggle_llm.weights.recorder import Call

SMOKE = "exp002_rerank--smoke"


def choices(*rows: list[float], prompts: list[tuple[int, ...]] | None = None) -> list[Call]:
    asked = prompts or [(n,) for n in range(len(rows))]
    return [Call("choices", asked, np.log(np.array(rows)), [])]


def test_differences_of_a_hand_made_case() -> None:
    before, after = choices([0.5, 0.25], [0.2, 0.4]), choices([0.25, 0.5], [0.2, 0.4])
    found = find_differences(before, after)
    assert (found.prompts, found.other_prompts, found.other_texts) == (2, 0, 0)
    assert found.largest == pytest.approx(np.log(2)) and found.mean == pytest.approx(np.log(2) / 2)
    by_hand = 0.5 * np.log(0.5 / 0.25) + 0.25 * np.log(0.25 / 0.5) + 0.25 * np.log(0.25 / 0.25)
    assert found.kl == pytest.approx(by_hand / 2)
    assert find_differences(before, before) == Differences(2, 0, 0.0, 0.0, 0.0, pytest.approx(1.0), 0)


def test_divergence_counts_what_is_none_of_the_labels() -> None:
    p, q = np.log([[0.1, 0.1]]), np.log([[0.2, 0.2]])
    by_hand = 0.2 * np.log(0.5) + 0.8 * np.log(0.8 / 0.6)
    assert divergence(p, q)[0] == pytest.approx(by_hand)


def test_rank_correlation_follows_the_order_of_the_log_odds() -> None:
    logs = np.log([[0.6, 0.2], [0.5, 0.3], [0.1, 0.8]])
    assert log_odds(logs) == pytest.approx(np.log([3, 5 / 3, 1 / 8]))
    assert rank_correlation(log_odds(logs), log_odds(logs[::-1])) == pytest.approx(-1)
    assert rank_correlation(np.zeros(3), np.arange(3.0)) is None


def test_other_prompts_and_other_calls_are_seen() -> None:
    rows = [[0.5, 0.25], [0.2, 0.4]]
    assert find_differences(choices(*rows), choices(*rows, prompts=[(0,), (7, 8)])).other_prompts == 1
    with pytest.raises(ValueError, match="2 and 1 prompts"):
        find_differences(choices(*rows), choices(rows[0]))
    with pytest.raises(ValueError, match="differ in shape"):
        find_differences(choices(*rows), choices([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]))


def test_where_prompts_depend_on_answers_those_of_both_stages_are_compared() -> None:
    """Of three prompts two are common, asked in another order and beside other labels."""
    pair, window = choices([0.5, 0.25], [0.2, 0.4]), choices([0.1, 0.2, 0.3], prompts=[(9,)])
    other, again = choices([0.1, 0.2, 0.3], prompts=[(8,)]), choices([0.2, 0.4], [0.25, 0.4], prompts=[(1,), (0,)])
    common = find_differences([*pair, *window], [*again, *other], in_turns=True)
    assert (common.prompts, common.other_prompts) == (3, 1)
    assert common.largest == pytest.approx(np.log(2)) and common.mean == pytest.approx((np.log(2) + np.log(1.6)) / 4)
    assert common.spearman == pytest.approx(1.0)
    nothing = find_differences(window, other, in_turns=True)
    assert (nothing.prompts, nothing.other_prompts, nothing.largest) == (1, 1, None)


def test_answers_to_several_kinds_of_questions_are_compared_together() -> None:
    calls = [*choices([0.5, 0.25], [0.2, 0.4]), *choices([0.1, 0.2, 0.3], prompts=[(9,)])]
    assert find_differences(calls, calls) == Differences(3, 0, 0.0, 0.0, pytest.approx(0.0), pytest.approx(1.0), 0)


def test_a_smoke_run_compares_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(parity, "check_parity", lambda _, rows: asked.append(rows))
    monkeypatch.setattr(parity, "print_parity", lambda _: None)
    for smoke in (True, False):
        parity.report_parity("a", smoke)
    assert asked == [8, None], "None: as the config says"


def test_vectors_and_texts_are_compared_too() -> None:
    vectors = [Call("embed", [(1,)], np.array([[1.0, 0.0]]), [])]
    moved = [Call("embed", [(1,)], np.array([[0.9, 0.0]]), [])]
    found = find_differences(vectors, moved)
    assert found.largest == pytest.approx(0.1) and found.kl is None and found.spearman is None
    said = [[Call("generate", [(1,), (2,)], [], [["yes"], [text]])] for text in ("no", "perhaps")]
    assert find_differences(*said).other_texts == 1 and find_differences(*said).largest is None


@pytest.fixture(scope="module")
def loud_llm(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pico_llm whose second layer's MLP goes beyond float16 and comes back: only its inside overflows."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("headroom") / "loud"
    shutil.copytree(pico_llm, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e6
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_headroom_is_the_largest_activation_of_each_layer(pico_llm: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = list(range(6, 30))
    found = measure_headroom(pico_llm, [prompt], "choices")
    model = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    with torch.no_grad():
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    assert {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"} <= set(found.layers)
    assert found.layers["model.layers.0"] >= states[1].abs().max().item() - 1e-4
    assert found.layers["model.embed_tokens"] == pytest.approx(states[0].abs().max().item(), rel=1e-5)
    assert found.over == [] and found.largest == max(found.layers.values()) < LIMIT


def test_a_layer_that_overflows_inside_only_is_named(loud_llm: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = measure_headroom(loud_llm, [list(range(6, 30))], "choices")
    assert found.over == ["model.layers.1"] and found.largest > LIMIT
    half = AutoModelForCausalLM.from_pretrained(loud_llm, dtype=torch.float16)
    with torch.no_grad():
        assert not torch.isfinite(half(torch.arange(6, 30)[None]).logits).all(), "and float16 does overflow there"
    assert Headroom({"a": float("inf")}).over == ["a"]


@pytest.fixture(scope="module")
def bundled(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The complete smoke run and its bundle. Its one step has the learning rate 0, so the adapter is given weights."""
    from safetensors.torch import load_file, save_file

    succeed(trained.cli("bundle", SMOKE))
    root = tmp_path_factory.mktemp("parity") / "bundled"
    shutil.copytree(trained.root, root, ignore=shutil.ignore_patterns("rehearsals"))
    fold = root / "output" / SMOKE / "fold0"
    path = fold / "adapter" / "adapter_model.safetensors"
    weights = {name: tensor + 0.02 * ("lora_B" in name) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    merge(fold, root / "input" / "models" / "SmolLM2-135M-Instruct")
    return Workspace(root)


@pytest.fixture
def copy(bundled: Workspace, tmp_path: Path) -> Workspace:
    """To be broken."""
    shutil.copytree(bundled.root, tmp_path / "copy", symlinks=True)
    return Workspace(tmp_path / "copy")


@pytest.fixture
def complete(trained: Workspace, tmp_path: Path) -> Workspace:
    """The complete smoke run as it is, without its parity.json."""
    shutil.copytree(trained.root, tmp_path / "complete", ignore=shutil.ignore_patterns("rehearsals", "parity.json"))
    return Workspace(tmp_path / "complete")


def merge(fold: Path, base: Path) -> None:
    """Put the adapter, merged into `base`, in the place of the merged weights."""
    from kaggle_llm.weights.merge import merge_adapter

    about = fold / "adapter" / "weights.json"
    kept = about.read_bytes()
    about.write_text("{}")  # else the base's hash would be asked for
    merge_adapter(base, fold / "adapter", fold / "again")
    about.write_bytes(kept)
    path = fold / "merged" / "model.safetensors"
    path.unlink()  # the bundle has a hard link to it
    (fold / "again" / path.name).replace(path)
    shutil.rmtree(fold / "again")


def read_report(workspace: Workspace) -> dict:
    return json.loads((workspace.output / SMOKE / "parity.json").read_text())


def test_a_training_ends_with_the_parity_of_its_stages(trained: Workspace) -> None:
    report = read_report(trained)
    (step,) = report["steps"]
    assert (step["before"], step["after"], step["rows"], step["status"]) == ("adapter", "merged", 4, "passed")
    assert report["status"] == "passed" and step["differences"]["largest"] <= 1e-4 and step["non_finite"] == 0
    assert step["differences"]["prompts"] == 4 * 4, "four candidates a row"
    assert report["headroom"]["reranker"]["over"] == [] and "model.layers.1" in report["headroom"]["reranker"]["layers"]
    assert (trained.output / SMOKE / "parity.png").read_bytes()[:4] == b"\x89PNG"


def merge_twice(workspace: Workspace) -> None:
    fold = workspace.output / SMOKE / "fold0"
    merge(fold, fold / "merged")


def double_alpha(workspace: Workspace) -> None:
    path = workspace.output / SMOKE / "fold0" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))


def break_a_layer(workspace: Workspace) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = workspace.output / SMOKE / "fold0" / "merged" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.nan
    path.unlink()  # the bundle has a hard link to it
    save_file(weights, path, metadata={"format": "pt"})


def change_template(workspace: Workspace) -> None:
    path = workspace.output / SMOKE / "fold0" / "merged" / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>", "<|user|>"))


FAULTS = {
    "merged twice": (merge_twice, "largest difference"),
    "wrong alpha": (double_alpha, "largest difference"),
    "NaN in one layer": (break_a_layer, "non-finite"),
    "another chat template": (change_template, "another chat template"),
}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Workspace], Result]]:
    """`kaggle-llm parity` in this process, which has its libraries: its own takes longer to start than to check."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(workspace: Workspace) -> Result:
        monkeypatch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
        return CliRunner().invoke(app, ["parity", SMOKE])

    yield call
    sys.modules.pop("predict", None)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_the_gate_and_is_not_pushed(
    copy: Workspace, name: str, check: Callable[[Workspace], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = FAULTS[name]
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(copy.root))
    make(copy)
    done = check(copy)
    assert done.exit_code == 1 and reason in done.output, done.output
    (step,) = read_report(copy)["steps"]
    assert step["status"] == "failed" and reason in step["reason"]
    if name == "merged twice":  # the push reads the report, whatever the fault was
        pushed = copy.cli("push", SMOKE)
        assert pushed.returncode != 0 and reason in pushed.stderr and "--accept-parity" in pushed.stderr


def test_what_was_made_again_alike_passes(bundled: Workspace, check: Callable[[Workspace], Result]) -> None:
    assert check(bundled).exit_code == 0
    (step,) = read_report(bundled)["steps"]
    assert step["status"] == "passed" and 0 < step["differences"]["largest"] <= 1e-4


def test_a_gate_that_was_passed_is_in_the_manifest(copy: Workspace) -> None:
    manifest = json.loads((copy.output / "bundles" / SMOKE / "MANIFEST.json").read_text())
    assert (manifest["parity"], manifest["ship"], manifest["note"]) == ("passed", "fold0", "")


def test_a_missing_gate_is_said_by_the_bundle_refused_by_push_and_passes_with_a_reason(complete: Workspace) -> None:
    assert "was never checked" in complete.cli("bundle", SMOKE).stderr
    path = complete.output / "bundles" / SMOKE / "MANIFEST.json"
    assert "was never checked" in json.loads(path.read_text())["parity"]
    done = complete.cli("push", SMOKE)
    assert done.returncode != 0 and "was never checked" in done.stderr
    done = complete.cli("push", SMOKE, "--accept-parity", "the metric ignores order")
    manifest = json.loads(path.read_text())
    assert manifest["parity_accepted"] == "the metric ignores order" and "was never checked" in manifest["parity"]
    assert done.returncode != 0 and "the bundle has no wheels" in done.stderr, "it went on to the next gate"


def test_a_stage_is_decided_by_what_its_own_answers_fit(bare: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose answers are only moved or stretched lose nothing: what ships has thresholds of its own."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(bare.root))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "predict", raising=False)
    exp = bare.root / "exp" / "exp008_heads"
    config = load_config(exp / "config.yaml", import_predict(exp).Config)
    competition = load_competition(config.competition)
    gate = parity.Gate(exp, config, competition, parity.ParitySettings(), "a run")
    monkeypatch.delitem(sys.modules, "predict")
    levels = [int(items[0]) for items in gate.truth["items"].to_list()]
    for stretch, move in ((1.0, 0.0), (0.4, 0.0), (1.0, 3.0)):
        answers = make_values(gate.truth["id"].to_list(), [[stretch * level + move] for level in levels])
        decided = gate.fit_decision([answers.head(9), answers.tail(-9)])
        assert decided and competition.metric.score(decided.apply(answers), gate.truth) == 1.0


def test_few_rows_leave_a_quantised_or_half_precision_stage_undecided(copy: Workspace) -> None:
    config = copy.output / SMOKE / "config.yaml"
    config.write_text(config.read_text().replace("dtype: float32\n  batch_tokens", "dtype: bfloat16\n  batch_tokens"))
    done = copy.cli("parity", SMOKE)
    steps = read_report(copy)["steps"]
    assert [step["after"] for step in steps] == ["merged", "transformers bfloat16"]
    assert steps[1]["status"] == "undecided", steps[1]
    assert "100 are needed" in steps[1]["reason"] and done.returncode == 1
