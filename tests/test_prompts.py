"""kaggle_llm.engines.prompts: the text and the tokens that a row and its candidates become."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pico import CHAT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kaggle_llm.competition.spans import WindowSettings, windows
from kaggle_llm.engines.prompts import (
    GAP,
    LONG,
    CandidatePrompts,
    Group,
    OptionPrompts,
    Prompter,
    PromptSettings,
    encode_pairs,
)
from kaggle_llm.engines.texts import TextPrompts, encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.masked import make_chunks

ROW = {"id": "7", "question": "What is 2/3 of 18?", "answer": "27"}
DOCUMENT = {"id": "m1", "name": "Swaps numerator and denominator"}
HARD_TEXTS = {
    "latin": "The student adds the numerators and then the denominators, as if both were whole numbers. " * 4,
    "emoji": "😀👩‍🏫🏳️‍🌈" * 20,
    "combining": "e\u0301a\u0308o\u0302\u0323" * 30,
    "right-to-left": "كم يساوي نصف العدد؟ מהו חצי המספר " * 8,
    "mixed": "½ of £20 😀 نصف ".join(map(str, range(30))),
}


@pytest.fixture(scope="module")
def tokenizer(pico_llm: Path) -> Any:
    return load_tokenizer(pico_llm)


def settings(**changes: Any) -> PromptSettings:
    plain = {
        "shared": "Question: {question} Answer: {answer}.",
        "candidate": " Misconception: {name}. Right?",
        "labels": [" Yes", " No"],
        "chat": False,
    }
    return PromptSettings(**(plain | changes))


def shortened(tokenizer: Any, text: str, budget: int) -> str:
    """What a prompt shows of a text that has a budget."""
    prompter = Prompter(tokenizer, settings(shared="{question}", budgets={"question": budget}))
    return tokenizer.decode(prompter.shared({"question": text}))


def count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_shared_and_candidate_tokens_decode_to_the_text(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, settings())
    assert tokenizer.decode([*prompter.shared(ROW), *prompter.candidate(DOCUMENT)]) == (
        "Question: What is 2/3 of 18? Answer: 27. Misconception: Swaps numerator and denominator. Right?"
    )


def test_labels_are_the_ids_of_their_words(tokenizer: Any) -> None:
    found = Prompter(tokenizer, settings(labels=[" No", "Yes"])).labels
    assert [tokenizer.decode(ids) for ids in found] == [" No", "Yes"]


def test_chat_wraps_system_message_in_front_and_answer_mark_behind_the_candidate(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, settings(chat=True, system="Answer Yes or No."))
    text = tokenizer.decode(prompter.shared(ROW)), tokenizer.decode(prompter.candidate(DOCUMENT))
    assert text == (
        "<|system|>\nAnswer Yes or No.</s>\n<|user|>\nQuestion: What is 2/3 of 18? Answer: 27.",
        " Misconception: Swaps numerator and denominator. Right?</s>\n<|assistant|>\n",
    )


def test_chat_prompt_is_the_template_applied_to_the_whole_text(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, settings(chat=True))
    user = "Question: What is 2/3 of 18? Answer: 27. Misconception: Swaps numerator and denominator. Right?"
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode([*prompter.shared(ROW), *prompter.candidate(DOCUMENT)]) == whole


def test_a_chat_template_that_trims_messages_still_ends_behind_the_candidate(pico_llm: Path) -> None:
    tokenizer = load_tokenizer(pico_llm)
    tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'] | trim")
    prompter = Prompter(tokenizer, settings(chat=True))
    assert tokenizer.decode(prompter.shared(ROW)).startswith("<|user|>\nQuestion")
    assert tokenizer.decode(prompter.candidate(DOCUMENT)).endswith("Right?</s>\n<|assistant|>\n")


def test_a_tokenizer_without_chat_template_is_refused_for_chat(pico_llm: Path) -> None:
    tokenizer = load_tokenizer(pico_llm)
    tokenizer.chat_template = None
    assert Prompter(tokenizer, settings()).shared(ROW)
    with pytest.raises(ValueError, match="no chat template"):
        Prompter(tokenizer, settings(chat=True))


@pytest.mark.parametrize("candidate", [" Misconception: {name}. Right?", " Misconception: {name}"])
@pytest.mark.parametrize("labels", [[" Yes", " No"], [" Yes No", "No"]])
def test_prompt_and_label_are_the_tokens_of_their_text(tokenizer: Any, candidate: str, labels: list[str]) -> None:
    prompter = Prompter(tokenizer, settings(candidate=candidate, labels=labels))
    for label, ids in zip(labels, prompter.labels, strict=True):
        text = candidate.format_map(DOCUMENT) + label
        assert [*prompter.candidate(DOCUMENT), *ids] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_label_behind_a_tokenizer_that_marks_words_is_the_one_within_a_text() -> None:
    """Such a tokenizer gives a text without a leading space the same first token as one with it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "▁Right?": 1, "▁Yes": 2, "▁No": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    made = Prompter(PreTrainedTokenizerFast(tokenizer_object=raw), settings(candidate="Right?", labels=[" Yes", " No"]))
    assert made.labels == [[2], [3]]


def test_a_label_that_merges_with_the_end_of_the_prompt_is_refused(tokenizer: Any) -> None:
    message = "label 'Yes' merges with the end of the prompt ' Right? ' (tokens ['ĠYes'])"
    with pytest.raises(ValueError, match=re.escape(message)):
        Prompter(tokenizer, settings(candidate="{name} Right? ", labels=["Yes", " No"]))


@pytest.mark.parametrize("labels", [[" Yes"], [" Yes", " Yes"]])
def test_one_label_or_the_same_twice_is_refused(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="two or more different"):
        settings(labels=labels)


def test_a_missing_column_is_named(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, settings())
    with pytest.raises(ValueError, match=r"asks for \['answer'\], the row has \['id', 'question'\]"):
        prompter.shared({"id": "7", "question": "?"})
    with pytest.raises(ValueError, match=r"asks for \['name'\], the row has \['id'\]"):
        prompter.candidate({"id": "m1"})


@pytest.mark.parametrize("text", ["{answer}", "{", "}", "{{question}}", "{0}", "%s {x!r:>9}"])
def test_braces_in_a_text_stand_as_they_are(tokenizer: Any, text: str) -> None:
    prompter = Prompter(tokenizer, settings())
    found = tokenizer.decode(prompter.shared({"question": text, "answer": "27"}))
    assert found == f"Question: {text} Answer: 27."


def test_a_null_text_becomes_empty(tokenizer: Any) -> None:
    found = tokenizer.decode(Prompter(tokenizer, settings()).shared({"question": None, "answer": "27"}))
    assert found == "Question:  Answer: 27."


def test_the_number_zero_is_no_null(tokenizer: Any) -> None:
    found = tokenizer.decode(Prompter(tokenizer, settings()).shared({"question": "3 − 3?", "answer": 0}))
    assert found == "Question: 3 − 3? Answer: 0."


@pytest.mark.parametrize("name", HARD_TEXTS)
def test_a_text_within_its_budget_is_untouched(tokenizer: Any, name: str) -> None:
    text = HARD_TEXTS[name]
    assert shortened(tokenizer, text, count(tokenizer, text)) == text


@pytest.mark.parametrize("name", HARD_TEXTS)
@pytest.mark.parametrize("budget", [1, 2, 11, 12, 13, 14, 30, 61])
def test_a_long_text_takes_its_budget_and_the_gap_mark_at_most(tokenizer: Any, name: str, budget: int) -> None:
    found = shortened(tokenizer, HARD_TEXTS[name], budget)
    assert GAP in found
    assert count(tokenizer, found) <= budget + count(tokenizer, GAP)


def test_a_text_of_fewer_characters_than_its_budget_may_be_too_long(tokenizer: Any) -> None:
    found = shortened(tokenizer, "😀" * 20, 28)
    assert count(tokenizer, "😀" * 20) > 28
    assert count(tokenizer, found) <= 28 + count(tokenizer, GAP)


def test_a_long_text_keeps_two_thirds_of_the_budget_from_its_head_and_a_third_from_its_tail(tokenizer: Any) -> None:
    text = HARD_TEXTS["latin"]
    head, tail = shortened(tokenizer, text, 31).split(GAP)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert (count(tokenizer, head), count(tokenizer, tail)) == (21, 10)


def test_the_default_budget_holds_for_columns_without_their_own(tokenizer: Any) -> None:
    prompter = Prompter(tokenizer, settings(budgets={"answer": 1000}, default_budget=20))
    found = tokenizer.decode(prompter.shared({"question": "7 " * 100, "answer": "8 " * 100}))
    assert found.count("7") < 25
    assert found.count("8") == 100


def test_prompts_of_a_row_are_the_row_then_each_candidate(tokenizer: Any) -> None:
    documents = pl.DataFrame({"id": ["m1", "m2", "m3"], "name": ["Swaps", "Ignores the sign", None]})
    rows = pl.DataFrame({"id": ["a", "b"], "question": ["2 + 2?", "1/2?"], "answer": ["5", "0.2"]})
    prompter = Prompter(tokenizer, settings(chat=True))
    asked = [Group("b", ("m3", "m1"), (0.0, 1.0)), Group("a", ("m2", "m1", "m3"), (0.5, 0.0, 0.5), (3.0, 1.0, 2.0))]
    made = CandidatePrompts(prompter, documents)
    found = made.groups(rows, asked)
    assert [(group.target, group.teacher) for group in found] == [(one.target, one.teacher) for one in asked]
    for group, known in zip(asked, found, strict=True):
        row = rows.row(by_predicate=pl.col("id") == group.id, named=True)
        assert known.shared == prompter.shared(row)
        assert [[*known.shared, *candidate] for candidate in known.candidates] == made.prompts(row, group.items)
        texts = [tokenizer.decode(prompt) for prompt in made.prompts(row, group.items)]
        names = dict(documents.iter_rows())
        assert texts == [
            f"<|user|>\nQuestion: {row['question']} Answer: {row['answer']}. "
            f"Misconception: {names[item] or ''}. Right?</s>\n<|assistant|>\n"
            for item in group.items
        ]
        assert len(known) == len(known.shared) + sum(map(len, known.candidates))


def test_a_model_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} has no tokenizer")):
        load_tokenizer(tmp_path)


def test_texts_that_lost_their_middle_are_counted_and_said_once(
    tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompter = Prompter(tokenizer, settings(budgets={"question": 5}))
    made = CandidatePrompts(prompter, pl.DataFrame({"id": ["m1"], "name": ["Swaps"]}))
    rows = pl.DataFrame({"id": ["a", "b"], "question": ["7 " * 40, "2?"], "answer": ["1", "2"]})
    for _ in range(2):
        made.groups(rows.filter(pl.col("id") == "a"), [Group("a", ("m1",), (1.0,))])
        assert "cut in the middle: {'question': 1}" in capsys.readouterr().err
    made.groups(rows.filter(pl.col("id") == "b"), [Group("b", ("m1",), (1.0,))])
    assert capsys.readouterr().err == ""


def test_options_are_the_texts_of_the_rows_own_columns(tokenizer: Any) -> None:
    prompter = Prompter(
        tokenizer, settings(shared="Question: {question}", candidate=" Answer: {text}", ending=". Right?")
    )
    rows = pl.DataFrame({"id": ["a", "b"], "question": ["2 + 2?", "1/2?"], "A": ["4", ""], "B": ["5", None]})
    made = OptionPrompts(prompter)
    for row in rows.iter_rows(named=True):
        texts = [tokenizer.decode(prompt) for prompt in made.prompts(row, ["B", "A"])]
        start = f"Question: {row['question']} Answer: "
        assert texts == [f"{start}{row['B'] or ''}. Right?", f"{start}{row['A']}. Right?"]
    (group,) = made.groups(rows, [Group("a", ("B", "A"), (0.0, 1.0))])
    assert [[*group.shared, *candidate] for candidate in group.candidates] == made.prompts(
        rows.row(0, named=True), "BA"
    )
    assert group.target == (0.0, 1.0)


# labels, control tokens, templates, seams ---------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[" 1", " 10"], [" A+", " A"], ["No", "Yes", "None"]])
def test_a_label_that_begins_another_one_is_refused_with_both(labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"begins label .* give each an end .* or take other labels"):
        settings(labels=labels)
    settings(labels=[f"{label}." for label in labels])


def test_a_label_whose_tokens_begin_another_one_is_refused(pico_encoder: Path) -> None:
    """The texts differ from the first letter on, but the tokenizer makes them lower case."""
    with pytest.raises(ValueError, match="label 'yes' begins label 'Yes no'"):
        Prompter(load_tokenizer(pico_encoder), settings(labels=["yes", "Yes no"], chat=False))


CONTROL = ("</s>", "<|user|>", "<think>", "</think>", "<tool_call>")


@pytest.fixture(scope="module")
def thinking(pico_llm: Path) -> Any:
    """A tokenizer with control tokens that are not "special", and with added runs of white space, which are text."""
    tokenizer = load_tokenizer(pico_llm)
    words = [*CONTROL[2:], "\n\n\n"]
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return tokenizer


@pytest.mark.parametrize("word", CONTROL)
def test_a_control_token_in_a_text_stays_text(thinking: Any, word: str) -> None:
    text = f"I wrote {word} here"
    control = thinking.convert_tokens_to_ids(word)
    prompter = Prompter(thinking, PromptSettings("{text}", candidate="{text}", ending="?", chat=False))
    ids = [*prompter.row({"text": text}), *prompter.candidate({"text": text}), *prompter.completion(text)[:-1]]
    ids += [*encode_texts(thinking, [text], 64)[0], *encode_pairs(thinking, [text], [text], 64)[0]]
    ids += make_chunks(thinking, [text], 64)[0]
    ids += windows(thinking, text, WindowSettings(64, 8))[0].ids
    assert control not in ids
    assert thinking.decode(prompter.row({"text": text})) == f"{text}?"
    assert thinking(word, add_special_tokens=False)["input_ids"] == [control], "the tokenizer itself is as it was"


def test_added_white_space_is_text(thinking: Any) -> None:
    prompter = Prompter(thinking, PromptSettings("{text}", chat=False))
    assert thinking.convert_tokens_to_ids("\n\n\n") in prompter.row({"text": "a\n\n\nb"})


THINKING_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}<|assistant|>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
CLOSED = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("how", [{"template": {"enable_thinking": False}}, {"answer": CLOSED}], ids=str)
def test_an_answer_begins_behind_a_closed_thought(thinking: Any, how: dict[str, Any]) -> None:
    thinking.chat_template = THINKING_TEMPLATE
    chat = settings(chat=True, **how)
    prompter = Prompter(thinking, chat)
    ids = [*prompter.shared(ROW), *prompter.candidate({"name": "x"})]
    assert thinking.decode(ids).endswith(f"<|assistant|>\n{CLOSED}")
    assert ids.count(thinking.convert_tokens_to_ids("</think>")) == 1
    assert [thinking.decode(label) for label in prompter.labels] == chat.labels


def test_a_variable_that_the_template_never_asks_for_is_refused(thinking: Any) -> None:
    thinking.chat_template = THINKING_TEMPLATE
    with pytest.raises(ValueError, match=r"prompt.template has \['enable_thinkin_'\]"):
        Prompter(thinking, settings(chat=True, template={"enable_thinkin_": False}))


@pytest.mark.parametrize("name", ["template", "answer"])
def test_settings_of_a_chat_need_a_chat(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = .* needs chat = true"):
        settings(chat=False, **{name: {"a": 1} if name == "template" else "a"})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "says 'System role not supported'"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "leaves it out"),
    ],
)
def test_a_template_without_a_system_message_is_named_with_the_way_out(
    pico_llm: Path, template: str, said: str
) -> None:
    tokenizer = load_tokenizer(pico_llm)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=f"no system message, it {said}: set prompt.system=''"):
        Prompter(tokenizer, settings(chat=True, system="You grade."))


def sentence_piece(scheme: str) -> Any:
    """A tokenizer like Llama-2's; prepend: with the normaliser of its older conversions."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "prepend":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    texts = ["Question: two plus two\nMistake: adds one\nTrue? Yes", "Question: no\nMistake: none\nTrue? No"] * 20
    special = ["<unk>", "</s>", "<|user|>", "<|assistant|>"]
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("scheme", ["always", "first", "never", "prepend"])
def test_pieces_of_a_prompt_read_as_their_text(scheme: str, chat: bool) -> None:
    tokenizer = sentence_piece(scheme)
    prompter = Prompter(
        tokenizer,
        PromptSettings("Question: {q}\n", "Mistake: {text}\n", "True?", labels=[" Yes", " No"], chat=chat),
    )
    text = "Question: two plus two\nMistake: adds one\nMistake: none\nTrue?"
    shared = prompter.shared({"q": "two plus two"})
    options = [prompter._candidate({"text": "adds one"}), prompter.candidate({"text": "none"})]
    ids = [token for piece in (shared, *options) for token in piece]
    if chat:
        text = f"<|user|>\n{text}</s>\n<|assistant|>\n"
    assert tokenizer.decode([*ids, *prompter.labels[0]]) == tokenizer.decode(tokenizer(text + " Yes")["input_ids"])
    assert tokenizer.decode([*ids, *prompter.completion(" No")]).endswith(f"{tokenizer.decode(ids)} No</s>")


@pytest.mark.parametrize("scheme", ["always", "first", "prepend"])
def test_a_prompt_without_a_fixed_beginning_starts_as_a_text_does(scheme: str) -> None:
    tokenizer = sentence_piece(scheme)
    ids = Prompter(tokenizer, PromptSettings("", "{text}", "?", chat=False)).candidate({"text": "none"})
    start = tokenizer("none", add_special_tokens=False)["input_ids"]
    assert ids[: len(start)] == start and tokenizer.decode(ids) == "none?"


def make_pair_texts(length: int) -> list[str]:
    """Two short texts, and four of so many characters."""
    ends = [("a word and more ", "a word"), ("longer than a token 7/8 ", "end"), ("é語 ", "é"), (" ", "x")]
    return ["", "short one", *[start * (length // len(start)) + end for start, end in ends]]


@pytest.mark.parametrize("model", ["pico_encoder", "pico_llm"])
@pytest.mark.parametrize(("side", "max_tokens"), [("right", 8), ("left", 8), ("right", 31)])
def test_a_long_pair_has_the_tokens_that_the_tokenizer_keeps_of_it(
    request: pytest.FixtureRequest, model: str, side: str, max_tokens: int
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(model))
    tokenizer.truncation_side = side
    texts = make_pair_texts(3 * LONG * max_tokens)  # no longer: of a text the tokenizer makes all that is cut as well
    firsts, seconds = zip(*[(first, second) for first in texts for second in texts], strict=True)
    expected = tokenizer(list(firsts), list(seconds), truncation=True, max_length=max_tokens)["input_ids"]
    assert encode_pairs(tokenizer, firsts, seconds, max_tokens) == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["a word and more " * 25_000, "x" * 400_000], ids=["words", "one word"])
def test_huge_texts_are_cut_in_linear_time(pico_encoder: Path, text: str) -> None:
    tokenizer = load_tokenizer(pico_encoder)
    assert len(encode_pairs(tokenizer, [text], [text], 64)[0]) <= 64
    assert len(encode_texts(tokenizer, [text], 64)[0]) <= 64


def test_texts_become_token_ids_when_they_are_asked_for(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(HARD_TEXTS.values())
    whole = encode_texts(tokenizer, documents, 16)
    monkeypatch.setattr("kaggle_llm.engines.texts.TEXTS_A_CALL", 2)
    assert encode_texts(tokenizer, documents, 16) == whole and encode_texts(tokenizer, [], 16) == []
    prompts = TextPrompts(tokenizer, documents, 16)
    assert (len(prompts), prompts[:], prompts[1], prompts[1:3]) == (len(documents), whole, whole[1], whole[1:3])


def test_the_hash_of_texts_needs_no_tokenizer_and_differs_with_each_text_and_the_cut() -> None:
    several = [
        (["ab", "c"], 9),
        (["a", "bc"], 9),
        (["ab", "c"], 8),
        (["c", "ab"], 9),
        (["ab"], 9),
        (["ab", "c", ""], 9),
    ]
    assert len({TextPrompts(None, texts, cut).hash() for texts, cut in several}) == len(several)  # type: ignore[arg-type]
    assert TextPrompts(None, ["ab"], 9).hash() == TextPrompts(None, ("ab",), 9).hash()  # type: ignore[arg-type]
