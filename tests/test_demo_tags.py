"""demo-tags: marked spans are what they say, look-alikes look alike, and a submission's spans are checked."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.demo_tags import DemoTags
from kaggle_llm.competition.spans import Span, parse_item
from kaggle_llm_demo import letters
from kaggle_llm_demo.tags import FIELD, TYPES, Letter, draw_person, draw_rows

FORMS = {
    "NAME": r"\w+(, \w+)?|\w+ \w+|\w\. \w+",
    "EMAIL": r"[\w.]+@\w+\.example",
    "PHONE": r"[+(]?\d[\d ./()-]+\d",
    "ADDRESS": r"\d+[ab]? [A-Z][\w' ]+(, |\n)\d{5} [A-Z][\w ]+",
    "ID_NUMBER": r"[A-Z]-\d{5}|[XYZ]\d{7}|\d{3}-\d{2}-\d{4}|\d{8}",
    "BIRTHDAY": r"\d{1,2} \w+ \d{4}|\d{2}\.\d{2}\.\d{4}|\d{4}-\d{2}-\d{2}",
}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return draw_rows(300, "tr", 1, random.Random(0))


def spans_in(cell: str) -> list[Span]:
    return [] if cell == "-" else [parse_item(item) for item in cell.split()]


def test_every_span_has_the_form_of_its_type_and_none_overlaps(rows: pl.DataFrame) -> None:
    seen = set()
    for text, cell in rows.select("text", "spans").iter_rows():
        spans = spans_in(cell)
        for span in spans:
            assert re.fullmatch(FORMS[span.type], text[span.start : span.end]), (span, text)
            seen.add(span.type)
        assert all(one.end <= other.start for one, other in pairwise(spans))
    assert seen == set(TYPES)


@pytest.mark.parametrize("kind", ["PHONE", "ADDRESS", "ID_NUMBER", "BIRTHDAY"])
def test_a_third_or_more_of_what_has_the_form_is_nobodys(rows: pl.DataFrame, kind: str) -> None:
    """So that no pattern wins: only the words around tell."""
    marked = sum(span.type == kind for cell in rows["spans"].to_list() for span in spans_in(cell))
    alike = sum(len(re.findall(rf"(?<![\w@+(/.-])(?:{FORMS[kind]})\b", text)) for text in rows["text"].to_list())
    assert 0 < marked < 0.67 * alike


def test_names_of_firms_and_storms_are_those_of_people(rows: pl.DataFrame) -> None:
    outside = ""
    for text, cell in rows.select("text", "spans").iter_rows():
        for span in reversed(spans_in(cell)):
            text = text[: span.start] + text[span.end :]
        outside += text
    for name in (*letters.FIRST_NAMES, *letters.LAST_NAMES):
        assert name in outside, f"{name} is always somebody's"


def test_letters_are_of_forty_to_two_hundred_words_but_for_a_few_long_ones(rows: pl.DataFrame) -> None:
    words = rows["text"].str.extract_all(r"\S+").list.len()
    assert words.median() == pytest.approx(75, abs=20)
    assert ((words >= 30) & (words <= 200)).mean() > 0.9
    assert 3 <= (words > 400).sum() <= 30
    assert 3 <= (rows["spans"] == "-").sum() < 60, "some have nothing to find"
    assert rows["text"].n_unique() == rows.height


def test_a_senders_letters_share_a_source_and_say_the_same_of_them(rows: pl.DataFrame) -> None:
    found: dict[tuple[str, str], set[str]] = {}
    for text, cell, source in rows.select("text", "spans", "source").iter_rows():
        sender = [span for span in spans_in(cell) if span.type == "ID_NUMBER" and "in as " in text[: span.start][-9:]]
        found.setdefault((source, "id"), set()).update(text[span.start : span.end] for span in sender)
    assert all(len(values) <= 1 for values in found.values())
    assert 1.5 < rows.height / rows["source"].n_unique() < 2.5


def test_capital_fields_are_marked_and_small_ones_are_not() -> None:
    rng = random.Random(3)
    letter = Letter(draw_person(rng), rng)
    letter.write("[a|b]: {PHONE}, {OTHER_FIRST} and {phone}")
    sender, other = letter.sender, letter.other
    assert letter.text[:3] in ("a: ", "b: ") and sender.phone != letter.text.rpartition(" ")[2]
    marked = [(letter.text[span.start : span.end], span.type) for span in letter.spans]
    assert marked == [(sender.phone, "PHONE"), (other.first, "NAME")]


def test_every_sentence_has_fields_that_exist() -> None:
    """Personal ones only among the personal sentences: what looks alike and what fills is nobody's."""
    rng = random.Random(0)
    for group in (letters.ALIKES, letters.FILLERS, letters.BETWEEN):
        for template in group:
            letter = Letter(draw_person(rng), rng)
            letter.write(template)
            assert letter.spans == [] and not re.search(r"[{}\[\]|]", letter.text)
    for template in letters.PERSONAL:
        letter = Letter(draw_person(rng), rng)
        letter.write(template)
        assert letter.spans and not re.search(r"[{}\[\]|]", letter.text), template
    assert all(re.search(FIELD, template) for template in letters.PERSONAL)


@pytest.fixture
def competition(tmp_path: Path) -> DemoTags:
    train = 'id,text,spans,source\nr1,"I am Ada\r\nof 7 Elm Row",5:8:NAME 13:22:ADDRESS,s1\nr2,nothing,-,s2\n'
    (tmp_path / "train.csv").write_bytes(train.encode())
    (tmp_path / "test.csv").write_bytes('id,text\ne1,"Hi 😀 Ada"\ne2,\n'.encode())
    (tmp_path / "sample_submission.csv").write_text("id,spans\ne1,-\ne2,-\n")
    found = load_competition(CompetitionSettings("demo-tags"), tmp_path)
    assert isinstance(found, DemoTags)
    return found


def test_offsets_count_characters_and_a_line_end_of_windows_is_two(competition: DemoTags) -> None:
    competition.check()
    train = competition.table("train")
    truth = competition.truth(train)
    assert truth["items"].to_list() == [["5:8:NAME", "13:22:ADDRESS"], []]
    found = [train["text"][0][span.start : span.end] for span in map(parse_item, truth["items"][0])]
    assert found == ["Ada", "7 Elm Row"]


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (["5:8:NAME", "-"], ""),
        (["5:8:NAME 0:2:NAME", "-"], ""),
        (["5:9:NAME", "-"], "row e1: 5:9:NAME ends past its text of 8 characters"),
        (["-", "0:1:NAME"], "row e2: 0:1:NAME ends past its text of 0 characters"),
        (["5:8:NAME 5:8:NAME", "-"], "row e1: a label occurs twice"),
        (["5:NAME", "-"], "row e1: '5:NAME' is no span: it is written start:end:TYPE"),
        (["5:8:", "-"], "a span has one character or more and a type"),
        (["8:5:NAME", "-"], "a span has one character or more and a type"),
        (["-", None], "row e2: empty label"),
    ],
)
def test_spans_of_a_submission_parse_lie_in_their_text_and_are_there_once(
    competition: DemoTags, cells: list[str], problem: str
) -> None:
    found = competition.check_submission(pl.DataFrame({"id": ["e1", "e2"], "spans": cells}))
    assert len(found) == bool(problem) and all(problem in one for one in found), found


def test_a_training_span_past_its_text_stops(competition: DemoTags) -> None:
    path = competition.folder / "train.csv"
    path.write_bytes(path.read_bytes().replace(b"r2,nothing,-", b"r2,nothing,4:8:NAME"))
    with pytest.raises(ValueError, match=r"1 span\(s\) end past their text, first row r2: 4:8:NAME"):
        competition.check()
