"""The words of a text, for search and for comparing texts: the same for texts that look the same to a reader."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise

# Blocks of the scripts that put no space between words.
BLANKLESS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u1950-\u1aaf"  # Khmer, Tai
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo
    "\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
UNSPACED = f"\u1100-\u11ff\uac00-\ud7ff{BLANKLESS}"  # with Hangul, which has spaces, but glues particles to words
PIECE = re.compile(rf"[{BLANKLESS}]|[^\s{BLANKLESS}]+")  # what a count of words counts, with its punctuation
# Soft hyphens, joiners, zero-width spaces, marks of direction, selectors of a character's variant.
INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")
ENDING = r"(?<=\w)['’](?:d|ll|m|re|s|t|ve)\b"  # of English words: no word of its own
DECIMAL = r"\d+(?:\.\d+)+"
ASCII_WORD = re.compile(rf"{ENDING}|({DECIMAL}|\w+)", re.ASCII)  # `_stretches` of an ASCII text


def fold_text(text: str) -> str:
    """The text without the differences of composed and full-width forms, case and invisible characters.

    Unicode's NFKC_Casefold, except for rare characters.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded if folded.isascii() else unicodedata.normalize("NFKC", INVISIBLE.sub("", folded))


def split_words(text: str) -> list[str]:
    """The folded words of a text, those of one letter or digit too.

    A stretch in a script without spaces gives its characters and the pairs of neighbours, as Lucene's CJK filter does
    with unigrams: no dictionary is needed, and a word of one character is found.
    """
    folded = fold_text(text)
    if folded.isascii():  # no stretch without spaces: most texts, at a third of the time
        return list(filter(None, ASCII_WORD.findall(folded)))
    return [word for stretch in _stretches().findall(folded) for word in _split_stretch(stretch)]


def _split_stretch(stretch: str) -> list[str]:
    characters = [] if stretch.isascii() else _character().findall(stretch)
    if not characters:
        return [stretch] if stretch else []
    return [*characters, *(first + second for first, second in pairwise(characters))]


@cache
def _stretches() -> re.Pattern[str]:
    """Its one group is a word, a number or a stretch without spaces; empty for an ending."""
    spaced = rf"[^\W{UNSPACED}]+(?:[{_marks()}]+[^\W{UNSPACED}]*)*"
    return re.compile(rf"{ENDING}|({DECIMAL}|{spaced}|(?:{_character().pattern})+)")


@cache
def _character() -> re.Pattern[str]:
    return re.compile(rf"(?=\w)[{UNSPACED}][{_marks()}]*")


@cache
def _marks() -> str:
    """The combining marks, for a character class: Python's \\w lacks them, and Hindi writes its vowels with them."""
    return "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c).startswith("M"))
