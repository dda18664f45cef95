"""Spans → labels → one-hot logits → spans, for two kinds of tokenizer, and windows that lose and double nothing."""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
from pico import train_bpe

from kaggle_llm.competition.rankings import check_ranking, make_ranking
from kaggle_llm.competition.spans import (
    NO_LABEL,
    Span,
    Window,
    WindowSettings,
    _cover,
    bio_tags,
    find_runs,
    join_tags,
    labels_of,
    parse_item,
    read_tags,
    windows,
)
from kaggle_llm.engines.tokenizer import load_tokenizer

TAGS = bio_tags(["PER", "LOC"])
WORDS = [
    *("Tom", "adds", "247", "and", "138;", "fractions", "U.S.", "don't", "a", "…", "▁", "_", "##", "x\ue000y"),
    *(
        "[SEP]",
        "</s>",
        "<|user|>",
        "😀",
        "😀😀",
        "👨\u200d👩\u200d👧",
        "🇩🇪",
        "e\u0301te\u0301",
        "\u00e9t\u00e9",
        "\u0301x",
    ),
    *("שלום", "עולם\u200e", "مرحبا", "日本語", "ﬁne", "İstanbul", "ß", "\u200bzero\ufe0f", "naïve", "x\x00y"),
]
SPACES = [" ", " ", " ", "  ", "\n", " \t ", "\u00a0", "\u3000"]
SETTINGS = [WindowSettings(512, 0), WindowSettings(12, 4), WindowSettings(11, 8), WindowSettings(4, 1)]


@pytest.fixture(scope="session", params=["byte-level BPE", "WordPiece", "BPE with special tokens"])
def tokenizer(request: pytest.FixtureRequest, pico_encoder: Path) -> Any:
    if request.param == "WordPiece":
        return load_tokenizer(pico_encoder)
    bpe = train_bpe()
    if request.param == "BPE with special tokens":
        from tokenizers.processors import TemplateProcessing

        ids = [(name, bpe.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
        bpe._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return bpe


def random_text(seed: int) -> tuple[str, list[tuple[int, int]]]:
    """Words of every kind between white space of every kind, and their characters."""
    rng = Random(seed)
    text, places = rng.choice(["", "", "  ", "\n"]), []
    for _ in range(rng.randint(1, 30)):
        word = rng.choice(WORDS)
        places.append((len(text), len(text) + len(word)))
        text += word + rng.choice(SPACES)
    return text, places


def random_spans(places: Sequence[tuple[int, int]], rng: Random) -> list[Span]:
    """Stretches of one to four words; some next to each other."""
    spans, word = [], 0
    while word < len(places):
        last = min(word + rng.randint(0, 3), len(places) - 1)
        if rng.random() < 0.5:
            spans.append(Span(places[word][0], places[last][1], rng.choice(["PER", "LOC"])))
        word = last + 1
    return spans


def one_hot(found: Sequence[Window], spans: Sequence[Span]) -> list[np.ndarray]:
    """Logits that say what the labels say; special tokens shout something else."""
    logits = []
    for window in found:
        labels = labels_of(window, spans, TAGS)
        rows = np.full((len(labels), len(TAGS)), -9.0, dtype=np.float32)
        for row, label in zip(rows, labels, strict=True):
            row[1 if label == NO_LABEL else label] = 9.0
        logits.append(rows)
    return logits


def decode(windows: Sequence[Window], logits: Sequence[np.ndarray], text: str) -> list[tuple[Span, float]]:
    """The spans with their scores; a token is O where p(O) is 0.3 or more."""
    return join_tags(read_tags(windows, logits, TAGS), text, 0.3)


def back(tokenizer: Any, text: str, spans: Sequence[Span], settings: WindowSettings = SETTINGS[0]) -> list[Span]:
    """The spans after a round trip, from left to right."""
    found = windows(tokenizer, text, settings)
    decoded = decode(found, one_hot(found, spans), text)
    return sorted((span for span, _ in decoded), key=lambda span: span.start)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_spans_of_words_survive_the_round_trip(tokenizer: Any, settings: WindowSettings) -> None:
    spans_seen = windows_seen = 0
    for seed in range(60):
        text, places = random_text(seed)
        spans = random_spans(places, Random(seed))
        assert back(tokenizer, text, spans, settings) == spans, repr(text)
        spans_seen += len(spans)
        windows_seen += len(windows(tokenizer, text, settings))
    assert spans_seen > 150 and (windows_seen > 200 or settings.max_tokens == 512)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_token_is_owned_once_and_seen_where_it_is_farthest_from_an_edge(
    tokenizer: Any, settings: WindowSettings
) -> None:
    for seed in range(20):
        text, _ = random_text(seed)
        found = windows(tokenizer, text, settings)
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert [token for window in found for token in window.ids[window.owned]] == plain
        assert all(len(window.ids) == len(window.offsets) <= settings.max_tokens for window in found)
        start, content = 0, []
        for window in found:
            inside = [i for i, offset in enumerate(window.offsets) if offset is not None]
            first = start - (window.owned.start - inside[0])
            content.append((first, first + len(inside)))
            start += window.owned.stop - window.owned.start
        owners = [place for place, window in enumerate(found) for _ in window.ids[window.owned]]
        for token, owner in enumerate(owners):
            margins = [min(token - first, end - 1 - token) for first, end in content]
            assert margins[owner] >= 0 and margins[owner] == max(margins)
        assert all(second[0] <= first[1] - settings.overlap for first, second in pairwise(content))


def test_windows_carry_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    text = "Tom adds 247 and 138 and forgets to carry"
    (whole,) = windows(tokenizer, text, SETTINGS[0])
    assert whole.ids == tokenizer(text)["input_ids"]
    special = len(tokenizer("")["input_ids"])
    assert whole.offsets.count(None) == special
    for window in windows(tokenizer, text, WindowSettings(6, 2)):
        assert len(window.ids) == 6
        assert [token for token, offset in zip(window.ids, window.offsets, strict=True) if offset is None] == (
            tokenizer("")["input_ids"]
        )


def test_special_tokens_get_no_label_and_every_other_token_gets_one(tokenizer: Any) -> None:
    text, places = random_text(5)
    for window in windows(tokenizer, text, SETTINGS[1]):
        labels = labels_of(window, random_spans(places, Random(5)), TAGS)
        assert [label == NO_LABEL for label in labels] == [offset is None for offset in window.offsets]
        assert all(0 <= label < len(TAGS) for label in labels if label != NO_LABEL)


@pytest.mark.parametrize("text", ["", "   \n ", "\u200b", "\x00", "\ufe0f \u0301"])
def test_texts_of_nothing_have_no_spans(tokenizer: Any, text: str) -> None:
    found = windows(tokenizer, text, SETTINGS[3])
    shout = [np.tile([0.0, 9.0, 0.0, 0.0, 0.0], (len(window.ids), 1)) for window in found]
    assert all(text[span.start : span.end].strip() for span, _ in decode(found, shout, text))
    if not text.strip():
        assert decode(found, shout, text) == []
    assert back(tokenizer, text, [], SETTINGS[3]) == []


def test_any_unicode_makes_spans_that_lie_in_the_text_and_never_overlap(tokenizer: Any) -> None:
    """Random logits: what a model that learned nothing says."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        codes = [rng.integers(1, 0x250), rng.integers(0x250, 0xD7FF), rng.integers(0xE000, 0x10FFFF)]
        text = "".join(chr(rng.choice(codes) + rng.integers(0, 9)) for _ in range(30))
        found = windows(tokenizer, text, SETTINGS[1])
        decoded = decode(found, [rng.normal(size=(len(window.ids), 5)) for window in found], text)
        spans = sorted((span for span, _ in decoded), key=lambda span: span.start)
        assert all(first.end <= second.start for first, second in pairwise(spans))
        assert all(span.end <= len(text) and text[span.start : span.end].strip() for span in spans)
        items, scores = [span.to_item() for span, _ in decoded], [score for _, score in decoded]
        assert scores == sorted(scores, reverse=True)
        check_ranking(make_ranking(["r"], [items], [scores]), ["r"])


def test_a_span_that_cuts_a_token_is_widened_to_it() -> None:
    bpe = train_bpe()
    text = "Which fraction is"
    assert bpe.tokenize(text) == ["Which", "Ġfraction", "Ġis"]
    assert back(bpe, text, [Span(8, 11, "PER")]) == [Span(6, 14, "PER")]
    assert back(bpe, text, [Span(3, 8, "PER")]) == [Span(0, 14, "PER")]
    # "Which" has a letter of both: the first span takes it, the second begins behind it.
    assert back(bpe, text, [Span(0, 2, "PER"), Span(3, 14, "LOC")]) == [Span(0, 5, "PER"), Span(6, 14, "LOC")]
    assert back(bpe, text, [Span(0, 2, "PER"), Span(3, 5, "LOC")]) == [Span(0, 5, "PER")]


def test_white_space_at_the_ends_of_a_span_is_trimmed(tokenizer: Any) -> None:
    text = "Tom  adds \n 247"
    assert back(tokenizer, text, [Span(3, 12, "PER")]) == [Span(5, 9, "PER")]
    assert back(tokenizer, text, [Span(0, 5, "PER"), Span(5, 15, "PER")]) == [Span(0, 3, "PER"), Span(5, 15, "PER")]
    assert back(tokenizer, text, [Span(3, 5, "PER")]) == []


def test_characters_that_the_tokenizer_drops_belong_to_what_they_touch(pico_encoder: Path) -> None:
    wordpiece = load_tokenizer(pico_encoder)
    text = "e\u0301 \u200ba\x00b \ufe0f"
    (window,) = windows(wordpiece, text, SETTINGS[0])
    assert window.offsets == [None, (0, 2), (3, 6), (6, 7), None]


class MadeUpTokenizer:
    """Offsets as given: what other tokenizers are known to say."""

    is_fast = True
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, *offsets: tuple[int, int]) -> None:
        self.offsets = offsets

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        count = len(self.offsets)
        return {"input_ids": [7] * count, "offset_mapping": self.offsets, "special_tokens_mask": [0] * count}


@pytest.mark.parametrize(
    ("offsets", "expected", "spans", "after"),
    [
        pytest.param(
            [(0, 1), (0, 2), (2, 3)],
            [(0, 2), (0, 2), (2, 3)],
            [Span(1, 2, "PER"), Span(2, 3, "PER")],
            [Span(0, 2, "PER"), Span(2, 3, "PER")],
            id="bytes of two characters in one token",
        ),
        pytest.param(
            [(0, 1), (1, 1), (1, 3)],
            [(0, 1), (1, 1), (1, 3)],
            [Span(0, 1, "PER"), Span(1, 3, "PER")],
            [Span(0, 1, "PER"), Span(1, 3, "PER")],
            id="a token without width between two spans",
        ),
        pytest.param(
            [(0, 1), (1, 1), (1, 3)],
            [(0, 1), (1, 1), (1, 3)],
            [Span(0, 3, "PER")],
            [Span(0, 3, "PER")],
            id="a token without width inside a span",
        ),
    ],
)
def test_offsets_that_share_characters_or_have_no_width(
    offsets: list[tuple[int, int]], expected: list[tuple[int, int]], spans: list[Span], after: list[Span]
) -> None:
    made_up: Any = MadeUpTokenizer(*offsets)
    (window,) = windows(made_up, "日本語", SETTINGS[0])
    assert window.offsets == expected
    assert back(made_up, "日本語", spans) == after


def test_a_window_that_begins_inside_a_span_goes_on_with_it() -> None:
    bpe = train_bpe()
    text = "Which fraction is bigger or Which fraction"
    spans = [Span(0, 24, "PER"), Span(25, 42, "PER")]
    whole, parts = windows(bpe, text, SETTINGS[0])[0], windows(bpe, text, WindowSettings(4, 2))
    labels, begin = labels_of(whole, spans, TAGS), {1}
    assert [i for i, label in enumerate(labels) if label in begin] == [0, bpe.tokenize(text).index("Ġor")]
    merged = [label for part in parts for label in labels_of(part, spans, TAGS)[part.owned]]
    assert merged == labels


def test_the_score_is_the_mean_log_probability_and_comes_from_the_owner() -> None:
    bpe = train_bpe()
    text = "Which fraction is"
    found = windows(bpe, text, WindowSettings(2, 1))
    assert [window.owned for window in found] == [slice(0, 1), slice(0, 2)]
    logits = [np.array([[0.0, 2, 0, 0, 0], [9, 0, 0, 0, 0]]), np.array([[0.0, 0, 1, 0, 0], [0, 0, 0, 3, 0]])]
    first = 2 - np.log(np.exp(2) + 4)
    second = 1 - np.log(np.exp(1) + 4)
    third = 3 - np.log(np.exp(3) + 4)
    (best, best_score), (other, score) = decode(found, logits, text)
    assert (best, other) == (Span(15, 17, "LOC"), Span(0, 14, "PER"))
    assert (best_score, score) == pytest.approx((third, (first + second) / 2))


def test_an_inside_that_follows_another_type_starts_a_span() -> None:
    bpe = train_bpe()
    text = "Which fraction is bigger"
    (window,) = windows(bpe, text, SETTINGS[0])
    assert len(window.ids) == 4, "the throwaway tokenizer has these words"
    tags = ["I-PER", "I-LOC", "O", "I-LOC"]
    scores = np.array([[float(tag == one) for tag in TAGS] for one in tags])
    found = {(span.start, span.end, span.type) for span, _ in decode([window], [scores], text)}
    assert found == {(0, 5, "PER"), (6, 14, "LOC"), (18, 24, "LOC")}


def test_a_threshold_takes_the_likeliest_other_tag_where_outside_is_not_sure() -> None:
    bpe = train_bpe()
    text = "Which fraction is"
    (window,) = windows(bpe, text, SETTINGS[0])
    chances = np.array([[0.5, 0.3, 0.1, 0.05, 0.05], [0.9, 0.01, 0.05, 0.02, 0.02], [0.96, 0.01, 0.01, 0.01, 0.01]])
    found = read_tags([window], [np.log(chances)], TAGS)
    assert found.tags == ["B-PER", "I-PER", "B-PER"] and np.exp(found.outside) == pytest.approx(chances[:, 0])
    spans = {threshold: [span for span, _ in join_tags(found, text, threshold)] for threshold in (0.5, 0.6, 0.95)}
    assert spans == {0.5: [], 0.6: [Span(0, 5, "PER")], 0.95: [Span(0, 14, "PER")]}
    ((_, score),) = join_tags(found, text, 0.95)
    assert score == pytest.approx((np.log(0.3) + np.log(0.05)) / 2)


def test_tokens_that_share_a_character_are_one_unit_from_the_first_ones_start_to_the_last_ones_end() -> None:
    assert _cover("a bé c", [(0, 4), (3, 4), (4, 6)]) == [(0, 4), (0, 4), (5, 6)]
    assert _cover("ab", [(0, 1), (0, 1), (1, 2)]) == [(0, 1), (0, 1), (1, 2)], "the bytes of one character"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-x I-x O B-y", [(0, 1, "x"), (3, 3, "y")]),
        ("I-x I-x O I-y", [(0, 1, "x"), (3, 3, "y")]),
        ("B-x B-x I-y I-x", [(0, 0, "x"), (1, 1, "x"), (2, 2, "y"), (3, 3, "x")]),
        ("O I-a-b I-a-b O", [(1, 2, "a-b")]),
        ("O O O O", []),
    ],
)
def test_tags_become_runs_and_broken_ones_are_repaired(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert find_runs(tags.split()) == expected


def test_unknown_tags_and_empty_spans_are_refused() -> None:
    for tag in ("X-per", "B-", "B", "", "o"):
        with pytest.raises(ValueError, match="there are O, B-TYPE and I-TYPE"):
            find_runs([tag])
    with pytest.raises(ValueError, match="a span has one character or more"):
        Span(1, 1, "x")


def test_an_item_is_read_back() -> None:
    span = Span(3, 17, "a:b-c")
    assert span.to_item() == "3:17:a:b-c" and parse_item(span.to_item()) == span
    for item in ("", "3:17", "3:17:", "x:17:a", "-3:17:a", "17:3:a", "3:3:a"):
        with pytest.raises(ValueError, match="span"):
            parse_item(item)


def test_tags_are_begin_and_inside_of_every_type() -> None:
    assert bio_tags(["x", "y"]) == ["O", "B-x", "I-x", "B-y", "I-y"]
    for types in ([], ["x", "x"], [""]):
        with pytest.raises(ValueError, match="name one or more, each once"):
            bio_tags(types)


def test_what_does_not_fit_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="overlap = 8, max_tokens = 8"):
        WindowSettings(8, 8)
    if tokenizer("")["input_ids"]:
        with pytest.raises(ValueError, match="max_tokens = 4 leaves 2 beside 2 special tokens"):
            windows(tokenizer, "a", WindowSettings(4, 2))
    (window,) = windows(tokenizer, "Tom adds", SETTINGS[0])
    with pytest.raises(ValueError, match=r"overlap: a token has one tag"):
        labels_of(window, [Span(0, 5, "PER"), Span(4, 8, "LOC")], TAGS)
    with pytest.raises(ValueError, match=r"spans of the types \['ORG'\]"):
        labels_of(window, [Span(0, 3, "ORG")], TAGS)
    with pytest.raises(ValueError, match=r"logits \(1, 5\) of a window"):
        decode([window], [np.zeros((1, 5))], "Tom adds")


def test_the_words_of_the_tests_are_what_they_seem() -> None:
    """Decomposed accents, right-to-left letters, characters outside the basic plane, and ones without width."""
    joined = "".join(WORDS)
    assert any(unicodedata.combining(char) for char in joined) and any(ord(char) > 0xFFFF for char in joined)
    assert any(unicodedata.bidirectional(char) in ("R", "AL") for char in joined) and "\u200d" in joined
