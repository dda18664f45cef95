"""Row → token ids: the only place where text becomes a prompt, for training, prediction and both engines.

A prompt has two pieces, tokenised separately: the part that all prompts of a row share, and one candidate's part. So
all prompts of a row have exactly the same token prefix, which engines compute once.
"""

from __future__ import annotations

import string
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.plain_text import inner_tokenizer, list_special_tokens, text_tokenizer

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

Prompt = Sequence[int]

GAP = " … "  # replaces the middle of a text that is too long
NO_SYSTEM = (
    "the tokenizer's chat template takes no system message, it {}: set prompt.system='' instead of {!r}, and begin "
    "prompt.shared with its text"
)
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

    None may begin another one, as " 1" does " 10". Training of a choice needs one token; prediction scores all tokens
    of a longer one."""
    others: list[str] = field(default_factory=list)
    """Further answers to a list that stand for no candidate, such as " tie"."""
    system: str = ""
    """System message for the chat template."""
    chat: bool = True
    """Wrap the prompt into the model's chat template as one user message."""
    template: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking: false}."""
    answer: str = ""
    """What the model's answer begins with, such as "<think>\\n\\n</think>\\n\\n"; labels and texts follow it."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Maximum tokens of a text, by column, else default_budget; a longer one keeps its head and tail."""
    default_budget: int = 256

    def __post_init__(self) -> None:
        answers = [*self.labels, *self.others]
        if len(answers) == 1 or len(set(answers)) < len(answers):
            raise ValueError(f"labels = {answers}: two or more different ones are needed, or none to generate text")
        check_beginnings(answers, answers)
        known = template_fields(self.shared) | template_fields(self.candidate)
        unknown = sorted(set(self.budgets) - known)
        if unknown:
            raise ValueError(f"budgets of {unknown}: the templates have {sorted(known)}")
        for name in ("system", "template", "answer"):
            if getattr(self, name) and not self.chat:
                raise ValueError(f"{name} = {getattr(self, name)!r} needs chat = true")


def check_beginnings(labels: Sequence[Sequence[Any]], texts: Sequence[str]) -> None:
    """Raises ValueError where a label is the beginning of another: its probability includes the longer one's.

    labels: texts, or token ids of the `texts`.
    """
    for i, label in enumerate(labels):
        for j, other in enumerate(labels):
            if i != j and list(other[: len(label)]) == list(label):
                raise ValueError(
                    f"label {texts[i]!r} begins label {texts[j]!r}, so the longer one could never win: give each an "
                    f"end (as in {texts[i] + '.'!r} and {texts[j] + '.'!r}) or take other labels, such as letters"
                )


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

    Raises ValueError where the tokenizer merges a label with the end of the prompt, where a label begins another one,
    and for prompt.chat without a chat template or with one that takes no system message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self._control = set(tokenizer.added_tokens_decoder)
        self.head, self.tail = self._wrapping()
        self._head_ends = self._encode(self.head + "x") == self._encode(self.head) + self._encode("x")
        """Whether a text after the head begins as at the very start."""
        texts = [*settings.labels, *settings.others]
        self.labels: list[Prompt] = [self._label(label) for label in texts]
        check_beginnings(self.labels, texts)
        self.cut: Counter[str] = Counter()
        """Number of texts cut to their budget, by column."""

    def shared(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of the beginning that the row's prompts share."""
        text = self._fill(self.settings.shared, row)
        return self._start() + self._encode(self.head) + self._piece(self._encode_text, text, is_first=True)

    def candidate(self, document: Mapping[str, Any]) -> list[int]:
        """Token ids of one candidate's part, up to where the label follows."""
        return self._candidate(document) + self._end()

    def row(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of the whole prompt of a row without candidates."""
        return self.shared(row) + self._end()

    def enclosed(self, row: Mapping[str, Any]) -> list[int]:
        """`row` for a head: inside the special tokens that the tokenizer puts around a text, such as [CLS] and [SEP].

        A chat template brings its own. What is longer than the tokenizer's model reads is cut in the middle: budgets
        are of texts, and a text that was cut may have some tokens more.
        """
        if self.settings.chat:
            return self.row(row)
        before, after = list_special_tokens(self.tokenizer)
        ids = self.row(row)[len(self._start()) :]
        room = self.tokenizer.model_max_length - len(before) - len(after)
        if len(ids) > room:
            self.cut["the whole prompt"] += 1
            ids = [*ids[: room - room // 2], *ids[len(ids) - room // 2 :]]
        return [*before, *ids, *after]

    def listing(self, row: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the whole prompt of a row with a list of options, each with its letter."""
        if len(options) > len(self.settings.labels):
            raise ValueError(f"{len(options)} options, but prompt.labels has {len(self.settings.labels)} letters")
        letters = [label.strip() for label in self.settings.labels]
        pieces = [self._candidate({**option, "letter": c}) for option, c in zip(options, letters, strict=False)]
        return self.shared(row) + [token for piece in pieces for token in piece] + self._end()

    def completion(self, text: str) -> list[int]:
        """Token ids of the target text, with the end-of-text token; raises ValueError where the tokenizer has none."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token, so no text could end: name it in tokenizer_config.json")
        return [*self._follow(self._encode_text, text), self.tokenizer.eos_token_id]

    def report_cuts(self) -> None:
        """Print how many texts were cut since the last report."""
        if self.cut:
            print(f"texts longer than prompt.budgets, cut in the middle: {dict(self.cut)}", file=sys.stderr)
            self.cut.clear()

    def _candidate(self, document: Mapping[str, Any]) -> list[int]:
        text = self._fill(self.settings.candidate, document)
        return self._piece(self._encode_text, text, is_first=not self.settings.shared)

    def _end(self) -> list[int]:
        is_first = not (self.settings.shared or self.settings.candidate)
        return self._piece(self._encode, self.settings.ending + self.tail, is_first)

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
        rendered = self._render([*system, {"role": "user", "content": marker}])
        head, separator, tail = rendered.partition(marker)
        if not separator:
            raise ValueError("the tokenizer's chat template leaves out the user's message: set prompt.chat=false")
        if self.settings.system.strip() not in rendered:
            raise ValueError(NO_SYSTEM.format("leaves it out", self.settings.system))
        return head, tail + self.settings.answer

    def _render(self, messages: list[dict[str, str]]) -> str:
        """The chat template's text; raises ValueError where it refuses the messages or lacks a variable."""
        from jinja2 import TemplateError

        variables = dict(self.settings.template)
        unknown = sorted(name for name in variables if name not in str(self.tokenizer.chat_template))
        if unknown:
            raise ValueError(f"prompt.template has {unknown}, which the tokenizer's chat template never asks for")
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
            )
        except TemplateError as error:
            if self.settings.system:
                raise ValueError(NO_SYSTEM.format(f"says {str(error)!r}", self.settings.system)) from error
            raise ValueError(f"the tokenizer's chat template says {str(error)!r}: set prompt.chat=false") from error

    def _label(self, label: str) -> list[int]:
        """Token ids of the label after a prompt."""
        end = self._last_words()
        if not end:
            return self._follow(self._encode, label)
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

    def _piece(self, encode: Callable[..., list[int]], text: str, is_first: bool) -> list[int]:
        """Token ids of a piece of the prompt; is_first: nothing but the head stands before it."""
        return encode(text) if is_first and self._head_ends else self._follow(encode, text)

    def _follow(self, encode: Callable[..., list[int]], text: str) -> list[int]:
        """Token ids of a text that follows another; what follows a control token in it is tokenised as in any text."""
        if inner_tokenizer(self.tokenizer) is self.tokenizer:
            return encode(text)
        inner, whole = encode(text, inner_tokenizer(self.tokenizer)), encode(text)
        first, second = (self._find_control(ids) for ids in (inner, whole))
        return inner[:first] + whole[second:]

    def _find_control(self, ids: Sequence[int]) -> int:
        """Index of the first added token, or the length."""
        return next((i for i, token in enumerate(ids) if token in self._control), len(ids))

    def _encode(self, text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
        return list((tokenizer or self.tokenizer)(text, add_special_tokens=False)["input_ids"])

    def _encode_text(self, text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
        """Token ids of a row's text; "<|im_end|>" in it stays text and cannot end the user's message."""
        plain = text_tokenizer(tokenizer or self.tokenizer)
        return list(plain(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


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


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, firsts: Sequence[str], seconds: Sequence[str], max_tokens: int
) -> list[Prompt]:
    """Token ids of text pairs for a cross-encoder; above `max_tokens` the longer text of a pair is cut first."""
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} first and {len(seconds)} second texts: a pair needs one of each")
    if not firsts:
        return []
    plain, options = text_tokenizer(tokenizer), {"truncation": True, "max_length": max_tokens}
    first, second = (_shorten(plain, texts, max_tokens) for texts in (firsts, seconds))
    return list(plain(first, second, split_special_tokens=True, **options)["input_ids"])


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
        split_special_tokens=True,
        **{"add_special_tokens": False, "truncation": True, "max_length": max_tokens, "return_offsets_mapping": True},
    )
    for row, offsets in zip(long, encoded["offset_mapping"], strict=True):
        ends = [end for offset in offsets for end in offset] or [0]
        short[row] = short[row][max(min(ends) - MARGIN, 0) : max(ends) + MARGIN]
    return short
