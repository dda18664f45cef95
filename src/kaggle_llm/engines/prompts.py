"""Row → token ids: the only place where text becomes a prompt.

Rendered and truncated once here, for training, prediction and both engines. A prompt is made of two pieces that
are tokenised apart: the part that a row's prompts share, and the part of one candidate. So prompts of a row have
one exact token prefix, which engines compute once.
"""

from __future__ import annotations

import string
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

Prompt = Sequence[int]

GAP = " … "  # stands where the middle of a text was cut out


@dataclass
class PromptSettings:
    shared: str
    """What all prompts of a row begin with; {column} stands for a text of the row."""
    candidate: str = ""
    """What follows for one candidate; {column} stands for a text of the document, {letter} for its place in a list."""
    ending: str = ""
    """What follows behind the candidate, or behind the last one of a list."""
    labels: list[str] = field(default_factory=list)
    """The answers whose log-probabilities are asked for: the right one first, or a list's letters.

    Best of one token each. Training of a choice needs that; prediction scores all tokens of a longer one."""
    others: list[str] = field(default_factory=list)
    """Answers beside a list's letters that stand for no candidate, such as " tie"."""
    system: str = ""
    """System message of the chat template."""
    chat: bool = True
    """Wrap the prompt into the model's chat template as one user message."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Tokens that a text may take, by column; a longer one keeps its head and tail. Default: default_budget."""
    default_budget: int = 256

    def __post_init__(self) -> None:
        answers = [*self.labels, *self.others]
        if len(answers) == 1 or len(set(answers)) < len(answers):
            raise ValueError(f"labels = {answers}: two or more different ones are needed, or none to generate text")
        known = template_fields(self.shared) | template_fields(self.candidate)
        unknown = sorted(set(self.budgets) - known)
        if unknown:
            raise ValueError(f"budgets of {unknown}: the templates have {sorted(known)}")
        if self.system and not self.chat:
            raise ValueError(f"system = {self.system!r} needs chat = true")


def template_fields(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """Every {column} replaced by the row's text; raises ValueError naming the columns that the row has not."""
    missing = sorted(template_fields(template) - set(values))
    if missing:
        raise ValueError(f"{template!r} asks for {missing}, the row has {sorted(values)}")
    return template.format_map(values)


class Prompter:
    """Renders prompts for one tokenizer.

    Raises ValueError where a label melts into the end of the prompt, and where the tokenizer has no chat template but
    one is asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.head, self.tail = self._wrapping()
        self.labels: list[Prompt] = [self._label(label) for label in [*settings.labels, *settings.others]]
        self.cut: Counter[str] = Counter()
        """Texts that were longer than their budget, by column."""

    def shared(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of what the row's prompts share."""
        return self._start() + self._encode(self.head) + self._encode_text(self._fill(self.settings.shared, row))

    def candidate(self, document: Mapping[str, Any]) -> list[int]:
        """Token ids of what follows for one candidate, up to where the label is asked for."""
        return self._candidate(document) + self._end()

    def row(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of the whole prompt of a row without candidates."""
        return self.shared(row) + self._end()

    def listing(self, row: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the whole prompt of a row whose options stand below each other, each with its letter."""
        if len(options) > len(self.settings.labels):
            raise ValueError(f"{len(options)} options, but prompt.labels has {len(self.settings.labels)} letters")
        letters = [label.strip() for label in self.settings.labels]
        pieces = [self._candidate({**one, "letter": letter}) for one, letter in zip(options, letters, strict=False)]
        return self.shared(row) + [token for piece in pieces for token in piece] + self._end()

    def completion(self, text: str) -> list[int]:
        """Token ids of what the model should answer, its end included."""
        return [*self._encode_text(text), self.tokenizer.eos_token_id]

    def report_cuts(self) -> None:
        """Say how many texts lost their middle since it was last said."""
        if self.cut:
            print(f"texts longer than prompt.budgets, cut in the middle: {dict(self.cut)}", file=sys.stderr)
            self.cut.clear()

    def _candidate(self, document: Mapping[str, Any]) -> list[int]:
        return self._encode_text(self._fill(self.settings.candidate, document))

    def _end(self) -> list[int]:
        return self._encode(self.settings.ending + self.tail)

    def _start(self) -> list[int]:
        """The tokenizer's begin-of-text, where it adds one; a chat template has its own."""
        ids, bos = self.tokenizer("")["input_ids"], self.tokenizer.bos_token_id
        return [bos] if not self.settings.chat and bos is not None and ids[:1] == [bos] else []

    def _wrapping(self) -> tuple[str, str]:
        if not self.settings.chat:
            return "", ""
        if not self.tokenizer.chat_template:
            raise ValueError("prompt.chat = true, but the tokenizer has no chat template: set prompt.chat=false")
        marker = "\ue000"  # not white space: some templates trim what a user says
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        rendered = self.tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
        )
        head, found, tail = str(rendered).partition(marker)
        if not found:
            raise ValueError("the tokenizer's chat template leaves out what the user says: set prompt.chat=false")
        return head, tail

    def _label(self, label: str) -> list[int]:
        """Token ids of the label as it follows the prompt."""
        end = self._last_words()
        before, ids = self._encode(end), self._encode(end + label)
        if ids[: len(before)] != before or len(ids) == len(before):
            pieces = self.tokenizer.convert_ids_to_tokens(ids[max(len(before) - 1, 0) :])
            raise ValueError(
                f"label {label!r} melts into the end of the prompt {end!r} (tokens {pieces}): "
                f"add or drop the label's leading space, or white space at the end of the prompt"
            )
        return ids[len(before) :]

    def _last_words(self) -> str:
        """What every prompt ends with: the text behind the template's last column; "" where that is the end."""
        text = self.settings.ending + self.tail
        template = self.settings.candidate or self.settings.shared
        *_, (literal, name, *_) = [("", None, None, None), *string.Formatter().parse(template)]
        return text or ("" if name else literal)

    def _fill(self, template: str, values: Mapping[str, Any]) -> str:
        texts = {name: "" if value is None else str(value) for name, value in values.items()}
        used = template_fields(template) & set(texts)
        return fill_template(template, texts | {name: self._shorten(texts[name], name) for name in used})

    def _shorten(self, text: str, name: str) -> str:
        """Keep two thirds of the budget from the head and one third from the tail."""
        budget = self.settings.budgets.get(name, self.settings.default_budget)
        if len(text.encode()) <= budget:  # a token is at least one byte
            return text
        ids = self._encode_text(text)
        if len(ids) <= budget:
            return text
        self.cut[name] += 1
        tail = budget // 3
        # A cut within a character leaves its broken bytes, which would take more tokens than they were.
        head = self.tokenizer.decode(ids[: budget - tail]).rstrip("\ufffd")
        return head + GAP + self.tokenizer.decode(ids[len(ids) - tail :]).lstrip("\ufffd")

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_text(self, text: str) -> list[int]:
        """A row may hold "<|im_end|>": it stays text and cannot end the user's message."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@dataclass(frozen=True)
class Group:
    """One row's candidates for a listwise loss, and how much of the right answer each is: sums to 1."""

    id: str
    items: tuple[str, ...]
    target: tuple[float, ...]
    teacher: tuple[float, ...] | None = None
    """A teacher's scores (log-probabilities up to a constant) of the items."""


@dataclass(frozen=True)
class TokenGroup:
    """A group as token ids: a prompt is the shared tokens and one candidate's.

    target and teacher have a value for each option: each candidate, or each label behind the only candidate.
    """

    shared: Prompt
    candidates: Sequence[Prompt]
    target: tuple[float, ...]
    teacher: tuple[float, ...] | None = None
    """A teacher's scores (log-probabilities up to a constant) of the options."""

    def __len__(self) -> int:
        """Tokens that training on the group takes: the shared ones count once."""
        return len(self.shared) + sum(len(candidate) for candidate in self.candidates)


class ItemPrompts:
    """The prompts of rows, one for each of a row's items: the one place for training and prediction."""

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        """Token ids of what follows the row's shared ones for one of its items."""
        raise NotImplementedError(f"{type(self).__name__}.candidate: say which texts an item has")

    def prompts(self, row: Mapping[str, Any], items: Sequence[str]) -> list[Prompt]:
        """One prompt for each item; all begin with the same tokens."""
        shared = self.prompter.shared(row)
        return [[*shared, *self.candidate(row, item)] for item in items]

    def groups(self, rows: pl.DataFrame, groups: Iterable[Group]) -> list[TokenGroup]:
        """The same prompts with the shared tokens apart, for a listwise loss; in the order of `groups`."""
        by_id = {row["id"]: row for row in rows.iter_rows(named=True)}
        made = [
            TokenGroup(
                self.prompter.shared(by_id[group.id]),
                [self.candidate(by_id[group.id], item) for item in group.items],
                group.target,
                group.teacher,
            )
            for group in groups
        ]
        self.prompter.report_cuts()
        return made


class CandidatePrompts(ItemPrompts):
    """Items are documents."""

    def __init__(self, prompter: Prompter, documents: pl.DataFrame) -> None:
        super().__init__(prompter)
        self._documents: dict[str, Mapping[str, Any]] = {row["id"]: row for row in documents.iter_rows(named=True)}
        self._tokens: dict[str, list[int]] = {}

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        if item not in self._tokens:
            self._tokens[item] = self.prompter.candidate(self._documents[item])
        return self._tokens[item]


class OptionPrompts(ItemPrompts):
    """Items are columns of the row itself, such as A to E: {text} of the candidate is what stands there."""

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        return self.prompter.candidate({"text": row[item]})


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Token ids of whole texts for an embedder, special tokens included, cut behind `max_tokens`."""
    if not texts:
        return []
    return list(tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"])


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int
) -> list[Prompt]:
    """Token ids of pairs of texts for a cross-encoder, joined as the tokenizer joins two texts.

    Above `max_tokens` the longer text of a pair loses its end first.
    """
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} first and {len(seconds)} second texts: a pair needs one of each")
    if not firsts:
        return []
    return list(tokenizer(list(firsts), list(seconds), truncation=True, max_length=max_tokens)["input_ids"])
