"""Which stages parity compares, in which dtype, and where they are computed when a card is too small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.inference.model import Model
from kaggle_llm.weights import recorder, stages
from kaggle_llm.weights.headroom import LIMIT, measure_headroom
from kaggle_llm.weights.recorder import RecordingRun
from kaggle_llm.weights.stages import count_bytes, describe_stage, is_exact, list_stages


def write_about(folder: Path, base: Path, about: dict[str, Any]) -> Path:
    shutil.copytree(base, folder)
    (folder / "weights.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def merged(tmp_path: Path, pico_llm: Path) -> Model:
    """An adapter trained in bfloat16, merged in float32: its folder holds whole weights here, which nobody loads."""
    parents = {"base": str(pico_llm)}
    adapter = {"stage": "adapter", "parents": parents, "dtype": "bfloat16"}
    write_about(tmp_path / "adapter", pico_llm, adapter)
    about = {"stage": "merged", "parents": {**parents, "adapter": str(tmp_path / "adapter")}, "dtype": "base"}
    return Model("reranker", write_about(tmp_path / "merged", pico_llm, about))


def show_card(monkeypatch: pytest.MonkeyPatch, free: float | None, capability: tuple[int, int] | None) -> None:
    monkeypatch.setattr(stages, "measure_free_memory", lambda: free)
    monkeypatch.setattr(stages, "read_capability", lambda: capability)


def describe(found: list[stages.Stage]) -> list[tuple[str, str, bool]]:
    return [(stage.name, stage.engine.dtype, stage.exact) for stage in found]


def test_the_reference_is_what_was_trained_and_only_float32_is_exact(merged: Model) -> None:
    engine = EngineSettings("transformers", "float16")
    shipped = ("transformers float16", "float16", False)
    trained = [("adapter", "bfloat16", False), ("merged", "bfloat16", False)]
    assert describe(list_stages(merged, [merged], engine)) == [*trained, shipped]
    exact = [("adapter", "float32", False), ("merged", "float32", True)]
    assert describe(list_stages(merged, [merged], engine, "float32")) == [*exact, shipped]
    same = EngineSettings("transformers", "bfloat16")
    assert describe(list_stages(merged, [merged], same)) == trained, "the engine that ships is the reference"


def test_without_a_recorded_dtype_the_reference_is_what_ships(merged: Model) -> None:
    for folder in (merged.folder, merged.folder.with_name("adapter")):
        about = json.loads((folder / "weights.json").read_text())
        about.pop("dtype")
        (folder / "weights.json").write_text(json.dumps(about))
    found = list_stages(merged, [merged], EngineSettings("transformers", "float32"))
    assert describe(found) == [("adapter", "float32", False), ("merged", "float32", True)]


@pytest.mark.parametrize(
    ("dtype", "about", "exact"),
    [
        ("float32", {}, True),
        ("float32", {"into": "original"}, True),
        ("float32", {"into": "dequantised"}, False),
        ("bfloat16", {"into": "original"}, False),
    ],
)
def test_a_merge_is_exact_in_float32_into_the_base_as_it_is(
    tmp_path: Path, dtype: str, about: dict[str, str], exact: bool
) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2, dtype=getattr(torch, dtype)), "ids": torch.arange(2)}, tmp_path / "model.safetensors")
    assert is_exact(tmp_path, about) is exact


def test_bytes_are_those_of_the_dtype(pico_llm: Path) -> None:
    from transformers import AutoModelForCausalLM

    parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(pico_llm).parameters())
    assert count_bytes(pico_llm, "bfloat16") == pytest.approx(2 * parameters, rel=0.01)
    assert count_bytes(pico_llm, "float32") == 2 * count_bytes(pico_llm, "bfloat16")


@pytest.mark.parametrize(
    ("free", "capability", "on_cpu"),
    [(80.0, (9, 0), False), (2.0, (9, 0), True), (80.0, (7, 5), True), (None, None, False)],
)
def test_what_does_not_fit_the_card_is_computed_on_the_cpu_and_said(
    monkeypatch: pytest.MonkeyPatch, merged: Model, free: float | None, capability: Any, on_cpu: bool
) -> None:
    """The engine that ships is never moved: it is what the gate is about."""
    show_card(monkeypatch, free, capability)
    found = list_stages(merged, [merged], EngineSettings("transformers", "float16"))
    assert [stage.on_cpu for stage in found] == [on_cpu, on_cpu, False]
    said = describe_stage(found[0])
    assert said == ("bfloat16 on cpu, as it does not fit the card" if on_cpu else f"bfloat16 on {describe_here()}")


def describe_here() -> str:
    from kaggle_llm.base.device import describe_device

    return describe_device()


def test_the_recorder_moves_only_the_model_that_it_watches(monkeypatch: pytest.MonkeyPatch, pico_llm: Path) -> None:
    made: list[str] = []
    monkeypatch.setattr(recorder, "TransformersEngine", lambda *given: made.append(given[-1]))
    monkeypatch.setattr(recorder, "make_engine", lambda *_: made.append("as usual"))
    for on_cpu in (True, False):
        settings = EngineSettings("transformers", "float32")
        run = RecordingRun("a", None, None, [], settings, on_cpu=on_cpu)  # type: ignore[arg-type]
        run.open_engine(Model("a", pico_llm))
    assert made == ["cpu", "as usual"]


def test_an_engine_on_the_cpu_places_nothing_on_a_card(monkeypatch: pytest.MonkeyPatch, pico_llm: Path) -> None:
    from kaggle_llm.engines import transformers_engine

    monkeypatch.setattr(transformers_engine, "choose_placement", lambda: pytest.fail("asked for a card"))
    engine = TransformersEngine(pico_llm, EngineSettings(dtype="float32"), device="cpu")
    assert engine.choices([[5, 6, 7]], [(8,)]).shape == (1, 1)
    engine.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_headroom_is_seen_in_the_dtype_of_the_reference(pico_llm: Path, dtype: Any) -> None:
    """bfloat16 has float32's range: an eighth of a percent is lost, no overflow."""
    found = measure_headroom(pico_llm, [list(range(6, 30))], "choices", dtype=dtype)
    exact = measure_headroom(pico_llm, [list(range(6, 30))], "choices")
    assert found.largest == pytest.approx(exact.largest, rel=0.05) and found.over == [] and found.largest < LIMIT
