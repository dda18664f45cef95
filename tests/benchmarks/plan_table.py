"""The table of docs/cards.md, in Markdown: python tests/benchmarks/plan_table.py

Shapes of 0.5B, 7B and 32B (Qwen2.5's), each trained in three ways on five cards, by the estimates of `kaggle-llm plan`:
from the shapes alone, on any machine, in a minute.
"""

from __future__ import annotations

from collections.abc import Iterator

from kaggle_llm.base.accelerators import Accelerator, find_card
from kaggle_llm.runtime.card_plans import Model, Training, needed_bytes, read_speed
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

SHAPES = {  # hidden, intermediate, layers, heads, key and value heads, vocabulary, tied
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
}
CARDS = ("t4x2", "4090", "a100-80", "h100", "h200")
METHODS = ("qlora", "lora", "full")
LENGTH, KEPT, TOKENS = 512, 1 / 8, 1_000_000  # of a text, its share with a loss, of the time that is shown
GIB = 2**30


def make_plan(name: str, method: str, checkpointing: bool) -> Training:
    from transformers import Qwen2Config

    hidden, intermediate, layers, heads, groups, vocabulary, tied = SHAPES[name]
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    training = TrainingSettings(dtype="bfloat16", gradient_checkpointing=checkpointing)
    return Training(Model(name, config, "causal"), LoraSettings(method), training, LENGTH, KEPT)  # type: ignore[arg-type]


def describe_card(plain: Training, checkpointed: Training, card: Accelerator) -> str:
    """Minutes of TOKENS where the training fits; c: with checkpointing only."""
    plan = next((plan for plan in (plain, checkpointed) if plan.fits(card)), None)
    if plan is None:
        return "–"
    speed = read_speed(card, card.half, plan.estimate.parameters)
    minutes = plan.estimate.operations * TOKENS / speed.operations / 60 if speed else float("nan")
    return f"{minutes:.1f}{' c' if plan is checkpointed else ''}"


def list_lines() -> Iterator[str]:
    cards = [find_card(name) for name in CARDS]
    yield f"| | GiB | checkpointed | {' | '.join(CARDS)} |"
    yield f"|---|---|---|{'---|' * len(CARDS)}"
    for name in SHAPES:
        for method in METHODS:
            plain, checkpointed = (make_plan(name, method, checkpointing) for checkpointing in (False, True))
            sizes = [f"{needed_bytes(plan.estimate) / GIB:.1f}" for plan in (plain, checkpointed)]
            cells = [describe_card(plain, checkpointed, card) for card in cards]
            yield f"| {name} {method} | {' | '.join([*sizes, *cells])} |"


def main() -> None:
    for line in list_lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
