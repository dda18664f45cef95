"""How many tokens a run's prompts have, by its config: for the estimates of memory and time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaggle_llm.engines.prompts import PromptSettings, template_fields

TOKEN_CHARACTERS = 4  # of a template's own text; what fills it has budgets in tokens
CHAT_TOKENS = 30  # that a chat template adds
ASSUMED_ROWS = 1000


@dataclass(frozen=True)
class Work:
    """Tokens of a row: `shared` by its prompts at their beginning, `own` of each prompt after that, `new` generated."""

    shared: int = 0
    own: int = 1024
    prompts: int = 1
    new: int = 1
    rows: int = ASSUMED_ROWS
    note: str = "prompts of 1024 tokens, assumed: there is no prompt section"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.shared + self.own + self.new

    @property
    def tokens(self) -> int:
        """Prompt tokens of all rows; those that a row's prompts share count once, as both engines compute them once."""
        return self.rows * (self.shared + self.prompts * self.own)


def plan_work(config: Mapping[str, Any], rows: int | None, prompts: int = 1) -> Work:
    """By `config["prompt"]`, every text as long as its budget; generated tokens by `writing.max_tokens`.

    prompts: of a row. With a section `orders` one prompt lists all options, and there is one prompt for each order.
    """
    rows = rows or ASSUMED_ROWS
    if not config.get("prompt"):
        return Work(rows=rows)
    settings = PromptSettings(**config["prompt"])
    shared = count_tokens(settings.shared, settings) + (CHAT_TOKENS if settings.chat else 0)
    candidate, ending = count_tokens(settings.candidate, settings), count_tokens(settings.ending, settings)
    listed = 1
    if orders := (config.get("orders") or {}).get("orders"):
        listed = len(settings.labels)
        prompts = {"given": 1, "both": 2}.get(orders, listed)
    new = int((config.get("writing") or {}).get("max_tokens", 1))
    note = f"texts as long as their budgets, {TOKEN_CHARACTERS} characters of template a token, {prompts} prompts a row"
    return Work(shared, listed * candidate + ending, prompts, new, rows, note)


def count_tokens(template: str, settings: PromptSettings) -> int:
    """The most tokens that the template can have: the budgets of its columns, and an estimate of its own text."""
    budgets = sum(settings.budgets.get(name, settings.default_budget) for name in template_fields(template))
    return budgets + -(-len(re.sub(r"\{\w+\}", "", template)) // TOKEN_CHARACTERS)
