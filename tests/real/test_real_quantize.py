"""llm-compressor itself on a pico model: three schemes, loaded again by transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from misconceptions import ROOT

from kaggle_llm.base import records
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.merge import merge_adapter
from kaggle_llm.weights.quantize import QuantizeSettings, quantize

ENVIRONMENT = ROOT / ".venv-quantise" / "bin" / "python"
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(not ENVIRONMENT.is_file(), reason="llm-compressor is absent: make quantise"),
]


@pytest.fixture
def prompts() -> list[list[int]]:
    """Of 5 to 40 tokens: no two need be of one length."""
    rng = np.random.default_rng(0)
    return [rng.integers(6, 260, length).tolist() for length in rng.integers(5, 41, 16)]


FORMATS = {"gptq": ("pack-quantized", True), "awq": ("pack-quantized", False), "smoothquant": ("int-quantized", True)}


@pytest.mark.parametrize(("scheme", "limit"), [("gptq", 0.5), ("awq", 0.5), ("smoothquant", 0.1)])
def test_quantised_model_answers_like_its_source(
    pico_llm: Path, prompts: list[list[int]], tmp_path: Path, scheme: str, limit: float
) -> None:
    made = tmp_path / "made"
    ids = [str(n) for n in range(len(prompts))]
    quantize(pico_llm, ids, prompts, QuantizeSettings(scheme=scheme, group_size=32), made, seed=0)
    for name in COPIED:
        assert (made / name).read_bytes() == (pico_llm / name).read_bytes()
    about = records.read_json(made / records.WEIGHTS)
    assert about["calibration"] == ids and about["versions"]["llmcompressor"]
    group = records.read_json(made / "config.json")["quantization_config"]["config_groups"]["group_0"]
    assert (group["format"], group["weights"]["symmetric"]) == FORMATS[scheme]

    before, after = (score(folder, prompts) for folder in (pico_llm, made))
    assert 0 < np.abs(before - after).mean() < limit * before.std()


def score(folder: Path, prompts: list[list[int]], base: Path | None = None) -> np.ndarray:
    engine = make_engine(folder, EngineSettings(), base)
    scores = engine.choices(prompts, [[token] for token in range(6, 20)])
    engine.close()
    return scores


def test_an_adapter_learns_on_a_quantised_base_and_is_served_on_it_unmerged(
    pico_llm: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    ids, made = [str(n) for n in range(len(prompts))], tmp_path / "gptq"
    quantize(pico_llm, ids, prompts, QuantizeSettings(scheme="gptq", group_size=32), made, seed=0)
    examples = [CompletionExample(tuple(prompt), (7, 8)) for prompt in prompts]
    training = TrainingSettings(batch=4, learning_rate=1e-2, epochs=2)
    fine_tune(GenerationTask(), examples, Job(made, tmp_path / "adapter", LoraSettings(r=4, alpha=8), training, 0))
    before, after = (
        score(folder, prompts, base)[:, 1] for folder, base in ((made, None), (tmp_path / "adapter", made))
    )
    assert after.mean() > before.mean() + 0.5, "the token that it learned to answer with"
    with pytest.raises(ValueError, match="quantised: an adapter on it ships unmerged"):
        merge_adapter(made, tmp_path / "adapter", tmp_path / "merged")
