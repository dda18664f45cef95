"""Texts that look the same have the same words, in every script, and a word of one character is a word."""

import random
import unicodedata

import pytest

from kaggle_llm.base import words
from kaggle_llm.base.words import fold_text, split_words
from kaggle_llm.retrieval.lexical import LexicalIndex

TEXTS = {
    "English": "The student's naïve answer isn't ½ or x² = 16",
    "German": "Die Größe der Straße: 3,5 m",
    "Greek": "Ο ΟΔΥΣΣΕΎΣ και ο Ὀδυσσεύς",
    "Turkish": "İstanbul'da IŞIK var",
    "Vietnamese": "Tiếng Việt có dấu",
    "Hindi": "हिन्दी भाषा की जनसंख्या",
    "Tamil": "தமிழ் மொழி பழமையானது",
    "Arabic": "اللُّغَة العربية جميلة",
    "Thai": "ภาษาไทยไม่มีช่องว่าง น้ำ",
    "Chinese": "玛丽居里发现了镭元素",
    "Japanese": "ガラスの残業は何時間ですか",
    "Korean": "한국어는 조사가 붙는다",
}
# For each script the documents; the query is the telling word of the last one.
SEARCHES = {
    "Hindi": (["मानक समय", "राजधानी दिल्ली", "आधुनिक हिन्दी भाषा"], "हिन्दी"),
    "Hindi, vowel signs": (["काला घोड़ा", "किला बड़ा", "कला अच्छी"], "कला"),
    "Bengali": (["আমি ভাত খাই", "সে বই পড়ে", "বাংলা ভাষা সুন্দর"], "ভাষা"),
    "Tamil": (["சென்னை ஒரு நகரம்", "மதுரை ஒரு நகரம்", "தமிழ் மொழி பழமையானது"], "தமிழ் மொழி"),
    "Chinese": (["北京是中国的首都", "上海是一个城市", "玛丽居里发现了镭元素"], "镭元素"),
    "Chinese, one character": (["北京是中国的首都", "上海是一个城市", "水在零度结冰"], "水"),
    "Japanese": (["今日は天気がいい", "犬が好きです", "残業の月間上限は何時間ですか"], "残業"),
    "Japanese, half width": (["今日は天気がいい", "犬が好きです", "割れたガラスの窓"], "ｶﾞﾗｽ"),
    "Thai": (["เขาไปโรงเรียน", "แมวกินปลา", "ฉันชอบภาษาไทย"], "ภาษา"),
    "Khmer": (["ខ្ញុំទៅសាលា", "ឆ្មាស៊ីត្រី", "ខ្ញុំចូលចិត្តភាសាខ្មែរ"], "ភាសា"),
    "Korean, a particle": (["나는 학교에 간다", "고양이가 잔다", "서울은 수도이다"], "서울"),
    "a digit": (["the answer is 4", "the answer is 5", "the answer is 7"], "student answered 7"),
    "a letter": (["solves for y first", "solves for z first", "solves for x first"], "find x"),
    "a language": (["written in R", "written in D", "written in C"], "C program"),
    "a fraction": (["thinks 1/2 is bigger", "thinks 1/5 is bigger", "thinks 3/4 is bigger"], "3/4"),
    "a decimal": (["0.7 and 5.2", "7.5 and 2", "0.5"], "it was 0.5"),
    "an apostrophe": (["the teacher’s pen", "don't", "the student’s book"], "a student's"),
}


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_that_look_the_same_have_the_same_words(text: str, form: str) -> None:
    other = unicodedata.normalize(form, text)
    assert split_words(other) == split_words(text) != []
    assert fold_text(other) == fold_text(text) == fold_text(fold_text(text))
    hidden = "\u200b".join(text) if text.isascii() else text[:3] + "\u00ad" + text[3:]
    assert split_words(hidden) == split_words(text)


@pytest.mark.parametrize(
    ("text", "other"), [("ＡＢＣ　１２", "abc 12"), ("STRASSE", "straße"), ("ΟΔΟΣ", "οδος"), ("ｶﾞﾗｽ", "ガラス")]
)
def test_width_and_case_change_no_word(text: str, other: str) -> None:
    assert split_words(text) == split_words(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answered 7, not 3/4", ["answered", "7", "not", "3", "4"]),
        ("0.05 of 12.5.", ["0.05", "of", "12.5"]),
        ("The student's isn't we’ll f'(x)", ["the", "student", "isn", "we", "f", "x"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("iPhone手机", ["iphone", "手", "机", "手机"]),
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("", []),
        ("?! ’", []),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


@pytest.mark.parametrize(("texts", "query"), SEARCHES.values(), ids=SEARCHES)
def test_the_document_with_the_word_is_found_in_every_script(texts: list[str], query: str) -> None:
    found = LexicalIndex(["first", "second", "right"], texts).search(["q"], [query], 3)
    assert found["items"][0][0] == "right" and found["scores"][0][0] > max(0, found["scores"][0][1])


def test_an_ascii_text_has_the_words_of_the_rule_for_every_script() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices("ab'd.s1 2_-tve", k=20))
        assert split_words(text) == [word for word in words._stretches().findall(text) if word], text
