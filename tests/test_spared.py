"""What a process does not load until its first prompt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ANSWER = """
import sys
from pathlib import Path

from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine

folder = Path(sys.argv[1])
load_tokenizer(folder)
engine = TransformersEngine(folder, EngineSettings(dtype="float32"))
engine.choices([[5, 6, 7]], [[8], [9]])
engine.generate([[5, 6, 7]], Sampling(max_tokens=2))
loaded = {"sklearn", "scipy", "pandas"} & sys.modules.keys()
assert not loaded, loaded

from transformers.utils import is_sklearn_available

assert is_sklearn_available(), "for all others it is there"
"""


@pytest.mark.slow
def test_a_model_answers_without_loading_scikit_learn(pico_llm: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(pico_llm)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
