"""The better of two answers becomes likelier (DPO), or gets a higher number (reward model).

A reward model scores candidates that another model wrote (best of n), or ranks pairs; it has to beat "the longer
answer". Leaves output/recipes/dpo/merged/ and output/recipes/reward/merged/.
"""

from pathlib import Path

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
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

base = Path("input/models/SmolLM2-135M-Instruct")
rows = load_competition(CompetitionSettings("demo-judge")).table("train").to_dicts()
tokenizer = load_tokenizer(base)


def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def make_pair(row: dict) -> PreferenceExample:
    answers = [encode(f" {row[name]}{tokenizer.eos_token}") for name in ("answer_a", "answer_b")]
    chosen, rejected = answers if row["label"] == "a" else answers[::-1]
    return PreferenceExample(encode(f"Problem: {row['problem']}\nAnswer:"), chosen, rejected)


pairs = [make_pair(row) for row in rows if row["label"] in ("a", "b")]
held_out, taught = pairs[:20], pairs[20:]
training = TrainingSettings(tokens=4000, batch=8, learning_rate=5e-4)
for form in ("dpo", "reward"):
    settings, folder = PreferenceSettings(form, beta=0.1, max_tokens=256), Path("output/recipes") / form
    train_preference(settings, taught, Job(base, folder / "adapter", LoraSettings(), training, seed=0))
    merge_adapter(base, folder / "adapter", folder / "merged")
    after = prefer(score_pairs(settings, folder / "merged", held_out, EngineSettings()))
    print(f"{form}: the better answer scores higher in {after:.2f} of the held-out pairs")

before = prefer(score_pairs(PreferenceSettings("dpo"), base, held_out, EngineSettings()))
print(f"the base model: {before:.2f}; the longer answer: {prefer(score_lengths(held_out)):.2f}")
