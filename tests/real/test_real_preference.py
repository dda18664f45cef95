"""DPO and a reward model on what three people all preferred: SmolLM2 is better on held-out instructions than before."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import ROOT, find_source

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.preference import (
    PreferenceExample,
    PreferenceSettings,
    prefer,
    score_lengths,
    score_pairs,
    train_preference,
)
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job
from kaggle_llm.weights.merge import merge_adapter

SOURCE = find_source("pandalm") / "testset-v1.json"
BASE = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(1200),  # two minutes each on two idle cores
    pytest.mark.skipif(not SOURCE.is_file(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not BASE.is_dir(), reason="the model is absent: make models"),
]


def read_pairs(tokens: int) -> list[tuple[str, PreferenceExample]]:
    """(instruction, pair) of at most `tokens` tokens a text: ties, quarrels and answers that are no text left out."""
    tokenizer = load_tokenizer(BASE)

    def encode(text: str) -> tuple[int, ...]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return (*ids, tokenizer.eos_token_id)

    pairs = []
    for row in json.loads(SOURCE.read_text(encoding="utf-8")):
        votes = {row["annotator1"], row["annotator2"], row["annotator3"]}
        texts = [row["response1"], row["response2"]]
        if votes not in ({1}, {2}) or not all(isinstance(text, str) and text.strip() for text in texts):
            continue
        answers = [encode(text.strip()) for text in texts]
        chosen, rejected = answers if votes == {1} else answers[::-1]
        question = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
        prompt = encode_prompt(tokenizer, question)
        if chosen != rejected and len(prompt) + max(len(chosen), len(rejected)) <= tokens:
            pairs.append((question, PreferenceExample(prompt, chosen, rejected)))
    return pairs


def encode_prompt(tokenizer: Any, question: str) -> tuple[int, ...]:
    """The model's turns without its long default system message."""
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def split_pairs(
    pairs: list[tuple[str, PreferenceExample]], train: int, held_out: int
) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
    """No instruction is on both sides."""
    questions = sorted({question for question, _ in pairs})
    random.Random(0).shuffle(questions)
    sides: tuple[list[PreferenceExample], list[PreferenceExample]] = ([], [])
    for question in questions:
        side = sides[1] if len(sides[1]) < held_out else sides[0]
        side += [pair for own, pair in pairs if own == question]
    random.Random(0).shuffle(sides[0])
    return sides[0][:train], sides[1][:held_out]


def train(settings: PreferenceSettings, pairs: list[PreferenceExample], folder: Path, **changes: Any) -> Path:
    """The merged model."""
    job = Job(BASE, folder / "adapter", LoraSettings(), TrainingSettings(batch=4, **changes), seed=0)
    train_preference(settings, pairs, job)
    merge_adapter(BASE, job.folder, folder / "merged")
    return folder / "merged"


def test_dpo_moves_the_policy_towards_what_is_preferred(tmp_path: Path) -> None:
    settings = PreferenceSettings("dpo")
    pairs, held_out = split_pairs(read_pairs(64), 48, 48)
    before = score_pairs(settings, BASE, held_out, EngineSettings())
    merged = train(settings, pairs, tmp_path, learning_rate=1e-3)
    after = score_pairs(settings, merged, held_out, EngineSettings())
    print(f"chosen is likelier a token: {prefer(before):.3f} before, {prefer(after):.3f} after")
    print(f"margin a token: {margin(before):.3f} before, {margin(after):.3f} after")
    implicit = prefer((after - before) * score_lengths(held_out))  # β(log π − log π_ref); before training all draw
    print(f"implicit reward prefers the chosen one: 0.5 before, {implicit:.3f} after")
    assert prefer(after) > prefer(before)  # measured: 0.583, 0.667
    assert margin(after) > margin(before) + 0.1  # measured: 0.280, 0.508
    assert implicit > 0.6  # measured: 0.771


def margin(scores: np.ndarray) -> float:
    """Mean of the chosen one's score minus the rejected one's."""
    return float(np.mean(scores[:, 0] - scores[:, 1]))


def test_a_reward_model_beats_the_prior(tmp_path: Path) -> None:
    """What is longer is preferred more often here, and a reward of so few pairs knows little more than that."""
    settings = PreferenceSettings("reward")
    pairs, held_out = split_pairs(read_pairs(64), 48, 48)
    merged = train(settings, pairs, tmp_path, learning_rate=5e-4, head_learning_rate=5e-3)
    after = prefer(score_pairs(settings, merged, held_out, EngineSettings()))
    print(f"reward prefers the chosen one: 0.5 before, {after:.3f} after, length {prefer(score_lengths(held_out)):.3f}")
    assert after > 0.6  # measured: 0.771, the length 0.781
