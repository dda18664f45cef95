"""How many tokens a run's prompts have, by its config: what the estimates of memory and time are made for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kaggle_llm.prompts import PromptSettings, template_fields

CHARACTERS = 4  # of a template's own text in a token; what it is filled with has budgets
CHAT_TOKENS = 30  # that a chat template adds
ROWS = 1000


@dataclass(frozen=True)
class Work:
    """shared: tokens that a row's prompts begin with; own: of one prompt behind them; new: that are generated."""

    shared: int = 0
    own: int = 1024
    prompts: int = 1
    new: int = 1
    rows: int = ROWS
    note: str = "prompts of 1024 tokens, assumed: there is no prompt section"

    @property
    def longest(self) -> int:
        """Tokens of one sequence."""
        return self.shared + self.own + self.new

    @property
    def tokens(self) -> int:
        """That are read: a row's shared ones once, as both engines do."""
        return self.rows * (self.shared + self.prompts * self.own)


def plan_work(config: Mapping[str, Any], rows: int | None) -> Work:
    """By the budgets of `config["prompt"]` when every text fills its own; candidates by `reranker.depth`."""
    rows = rows or ROWS
    if not config.get("prompt"):
        return Work(rows=rows)
    settings = PromptSettings(**config["prompt"])
    shared = count_tokens(settings.shared, settings) + (CHAT_TOKENS if settings.chat else 0)
    own = count_tokens(settings.candidate, settings) + count_tokens(settings.ending, settings)
    depth = (config.get("reranker") or {}).get("depth", 1) if settings.candidate else 1
    note = (
        f"every text as long as its budget, a token a {CHARACTERS} characters of the templates, {depth} prompts a row"
    )
    return Work(shared, own, int(depth), 1, rows, note)


def count_tokens(template: str, settings: PromptSettings) -> int:
    """At most: the budgets of its columns and an estimate of its own text."""
    budgets = sum(settings.budgets.get(name, settings.default_budget) for name in template_fields(template))
    return budgets + -(-len(re.sub(r"\{\w+\}", "", template)) // CHARACTERS)
