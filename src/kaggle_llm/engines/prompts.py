"""Row → token ids: the only place where text becomes a prompt, for training, prediction and both engines.

A prompt has two pieces, tokenised separately: the part that all prompts of a row share, and one candidate's part. So
all prompts of a row have exactly the same token prefix, which engines compute once.
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

GAP = " … "  # replaces the middle of a text that is too long
LONG = 8  # characters for a token that is kept: a longer text is cut before it is joined to another
MARGIN = 64  # characters beside the kept tokens, so that their words are whole


@dataclass
class PromptSettings:
    shared: str
    """Template of the beginning that all prompts of a row share; {column} is a text of the row."""
    candidate: str = ""
    """Template of one candidate's part; {column} is a text of the document, {letter} its letter in a list."""
    ending: str = ""
    """Text after the candidate, or after the last one of a list."""
    labels: list[str] = field(default_factory=list)
    """The answers to score: the right one first, or a list's letters. Best one token each.

    Training of a choice needs one token; prediction scores all tokens of a longer one."""
    others: list[str] = field(default_factory=list)
    """Further answers to a list that stand for no candidate, such as " tie"."""
    system: str = ""
    """System message for the chat template."""
    chat: bool = True
    """Wrap the prompt into the model's chat template as one user message."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Maximum tokens of a text, by column, else default_budget; a longer one keeps its head and tail."""
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
    """The template with every {column} replaced; raises ValueError, naming the columns that the row lacks."""
    missing = sorted(template_fields(template) - set(values))
    if missing:
        raise ValueError(f"{template!r} asks for {missing}, the row has {sorted(values)}")
    return template.format_map(values)


class Prompter:
    """Renders prompts for one tokenizer.

    Raises ValueError where the tokenizer merges a label with the end of the prompt, and for prompt.chat without a chat
    template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.head, self.tail = self._wrapping()
        self.labels: list[Prompt] = [self._label(label) for label in [*settings.labels, *settings.others]]
        self.cut: Counter[str] = Counter()
        """Number of texts cut to their budget, by column."""

    def shared(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of the beginning that the row's prompts share."""
        return self._start() + self._encode(self.head) + self._encode_text(self._fill(self.settings.shared, row))

    def candidate(self, document: Mapping[str, Any]) -> list[int]:
        """Token ids of one candidate's part, up to where the label follows."""
        return self._candidate(document) + self._end()

    def row(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of the whole prompt of a row without candidates."""
        return self.shared(row) + self._end()

    def listing(self, row: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the whole prompt of a row with a list of options, each with its letter."""
        if len(options) > len(self.settings.labels):
            raise ValueError(f"{len(options)} options, but prompt.labels has {len(self.settings.labels)} letters")
        letters = [label.strip() for label in self.settings.labels]
        pieces = [self._candidate({**option, "letter": c}) for option, c in zip(options, letters, strict=False)]
        return self.shared(row) + [token for piece in pieces for token in piece] + self._end()

    def completion(self, text: str) -> list[int]:
        """Token ids of the target text, with the end-of-text token."""
        return [*self._encode_text(text), self.tokenizer.eos_token_id]

    def report_cuts(self) -> None:
        """Print how many texts were cut since the last report."""
        if self.cut:
            print(f"texts longer than prompt.budgets, cut in the middle: {dict(self.cut)}", file=sys.stderr)
            self.cut.clear()

    def _candidate(self, document: Mapping[str, Any]) -> list[int]:
        return self._encode_text(self._fill(self.settings.candidate, document))

    def _end(self) -> list[int]:
        return self._encode(self.settings.ending + self.tail)

    def _start(self) -> list[int]:
        """The tokenizer's begin-of-text token, where it adds one; a chat template brings its own."""
        ids, bos = self.tokenizer("")["input_ids"], self.tokenizer.bos_token_id
        return [bos] if not self.settings.chat and bos is not None and ids[:1] == [bos] else []

    def _wrapping(self) -> tuple[str, str]:
        """The chat template's text before and after the user's message."""
        if not self.settings.chat:
            return "", ""
        if not self.tokenizer.chat_template:
            raise ValueError("prompt.chat = true, but the tokenizer has no chat template: set prompt.chat=false")
        marker = "\ue000"  # not white space: some templates strip the message
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        rendered = self.tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
        )
        head, separator, tail = str(rendered).partition(marker)
        if not separator:
            raise ValueError("the tokenizer's chat template leaves out the user's message: set prompt.chat=false")
        return head, tail

    def _label(self, label: str) -> list[int]:
        """Token ids of the label after a prompt."""
        end = self._last_words()
        before, ids = self._encode(end), self._encode(end + label)
        if ids[: len(before)] != before or len(ids) == len(before):
            pieces = self.tokenizer.convert_ids_to_tokens(ids[max(len(before) - 1, 0) :])
            raise ValueError(
                f"label {label!r} merges with the end of the prompt {end!r} (tokens {pieces}): "
                f"add or drop the label's leading space, or white space at the end of the prompt"
            )
        return ids[len(before) :]

    def _last_words(self) -> str:
        """The text that every prompt ends with, after the template's last column; "" where it ends with a column."""
        text = self.settings.ending + self.tail
        template = self.settings.candidate or self.settings.shared
        *_, (literal, name, *_) = [("", None, None, None), *string.Formatter().parse(template)]
        return text or ("" if name else literal)

    def _fill(self, template: str, values: Mapping[str, Any]) -> str:
        texts = {name: "" if value is None else str(value) for name, value in values.items()}
        used = template_fields(template) & set(texts)
        return fill_template(template, texts | {name: self._shorten(texts[name], name) for name in used})

    def _shorten(self, text: str, name: str) -> str:
        """The text within its budget: two thirds from the head, one third from the tail."""
        budget = self.settings.budgets.get(name, self.settings.default_budget)
        if len(text.encode()) <= budget:  # a token has at least one byte
            return text
        ids = self._encode_text(text)
        if len(ids) <= budget:
            return text
        self.cut[name] += 1
        tail = budget // 3
        # A cut inside a character leaves broken bytes, which would take more tokens than before.
        head = self.tokenizer.decode(ids[: budget - tail]).rstrip("\ufffd")
        return head + GAP + self.tokenizer.decode(ids[len(ids) - tail :]).lstrip("\ufffd")

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of a row's text; "<|im_end|>" in it stays text and cannot end the user's message."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@dataclass(frozen=True)
class Group:
    """One row's candidates for a listwise loss; target: each one's share of the right answer, summing to 1."""

    id: str
    items: tuple[str, ...]
    target: tuple[float, ...]
    teacher: tuple[float, ...] | None = None
    """A teacher's scores (log-probabilities up to a constant) of the items."""


@dataclass(frozen=True)
class TokenGroup:
    """A group as token ids: a prompt is the shared tokens plus one candidate's.

    target and teacher have a value for each option: each candidate, or each label after the only candidate.
    """

    shared: Prompt
    candidates: Sequence[Prompt]
    target: tuple[float, ...]
    teacher: tuple[float, ...] | None = None
    """A teacher's scores (log-probabilities up to a constant) of the options."""

    def __len__(self) -> int:
        """Tokens of the group in training; shared ones count once."""
        return len(self.shared) + sum(len(candidate) for candidate in self.candidates)


class ItemPrompts:
    """The prompts of a row, one for each of its items: the same for training and prediction."""

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        """Token ids of one item's part, after the row's shared ones."""
        raise NotImplementedError(f"{type(self).__name__}.candidate: return the tokens of an item")

    def prompts(self, row: Mapping[str, Any], items: Sequence[str]) -> list[Prompt]:
        """One prompt for each item; all begin with the same shared tokens."""
        shared = self.prompter.shared(row)
        return [[*shared, *self.candidate(row, item)] for item in items]

    def groups(self, rows: pl.DataFrame, groups: Iterable[Group]) -> list[TokenGroup]:
        """The same prompts with the shared tokens separate, for a listwise loss, in the order of `groups`."""
        by_id = {row["id"]: row for row in rows.iter_rows(named=True)}
        token_groups = [
            TokenGroup(
                self.prompter.shared(by_id[group.id]),
                [self.candidate(by_id[group.id], item) for item in group.items],
                group.target,
                group.teacher,
            )
            for group in groups
        ]
        self.prompter.report_cuts()
        return token_groups


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
    """Items are columns of the row itself, such as A to E; the candidate's {text} is the column's value."""

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        return self.prompter.candidate({"text": row[item]})


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Token ids of whole texts for an embedder, special tokens included, cut after `max_tokens`."""
    if not texts:
        return []
    return list(tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"])


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int
) -> list[Prompt]:
    """Token ids of text pairs for a cross-encoder; above `max_tokens` the longer text of a pair is cut first."""
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} first and {len(seconds)} second texts: a pair needs one of each")
    if not firsts:
        return []
    first, second = (_shorten(tokenizer, texts, max_tokens) for texts in (firsts, seconds))
    return list(tokenizer(first, second, truncation=True, max_length=max_tokens)["input_ids"])


def _shorten(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[str]:
    """The texts, of long ones only what holds the tokens that are kept.

    tokenizers also makes what is cut: of a pair every piece of one text with every piece of the other, 4 GB for 80 kB.
    """
    short = list(texts)
    long = [row for row, text in enumerate(short) if len(text) > LONG * max_tokens]
    if not long or not tokenizer.is_fast:
        return short
    encoded = tokenizer(
        [short[row] for row in long],
        **{"add_special_tokens": False, "truncation": True, "max_length": max_tokens, "return_offsets_mapping": True},
    )
    for row, offsets in zip(long, encoded["offset_mapping"], strict=True):
        ends = [place for offset in offsets for place in offset] or [0]
        short[row] = short[row][max(min(ends) - MARGIN, 0) : max(ends) + MARGIN]
    return short
