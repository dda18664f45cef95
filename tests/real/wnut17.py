"""WNUT 2017's named entities laid out as exp005 reads them: python tests/real/wnut17.py → input/wnut17/.

Source: the shared task on novel and emerging entities (CC BY 4.0), read in place (sources.py). Its train and dev
become train.csv without messages that were sent twice, with blocks of neighbouring ones as groups; its test becomes the
hidden test, whole, in output/hidden/ of the competition whose reader is used.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import polars as pl
from sources import ROOT, find_source, require

from kaggle_llm.competition.spans import Span, find_runs
from kaggle_llm_demo.files import write_competition
from kaggle_llm_demo.tags import NAME, NOTHING

SOURCE = find_source("wnut17")
TRAIN, DEV, TEST = "wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"
TYPES = ("corporation", "creative-work", "group", "location", "person", "product")
BLOCK = 10  # neighbouring messages of a group: some are one discussion
# The simplest ones: two capitalised words are a person, one behind "in" or "at" is a location; the demo's are emptied.
RULES = {
    **dict.fromkeys(("EMAIL", "ADDRESS", "BIRTHDAY", "ID_NUMBER", "PHONE", "NAME"), ""),
    "person": r"(?<!\S)[A-Z][a-z]{1,20} [A-Z][a-z]{1,20}",
    "location": r"(?<= in | at )[A-Z][a-z]{1,20}",
}
# What exp005 has to be told, and nothing else.
WORDS = (
    "competition.dir=input/wnut17",
    f"tagger.types=[{', '.join(TYPES)}]",
    "windows.max_tokens=64",
    "windows.overlap=16",
    "training.tokens=null",
    "training.batch=16",
    *(f"rules.{kind}='{rule}'" for kind, rule in RULES.items()),
)


def read_messages(path: Path, prefix: str, count: int | None = None) -> pl.DataFrame:
    """id, text, spans, source of the first `count` messages: a token a line with its tag, a blank line between them."""
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())[:count]
    rows = []
    for number, block in enumerate(blocks):
        pairs = [line.split("\t") for line in block.splitlines()]
        text, spans = join_words([word for word, _ in pairs], [tag.strip() for _, tag in pairs])
        cell = " ".join(span.to_item() for span in spans) or NOTHING
        rows.append((f"{prefix}{number:05d}", text, cell, f"{prefix}-block-{number // BLOCK:04d}"))
    return pl.DataFrame(rows, schema=["id", "text", "spans", "source"], orient="row")


def join_words(words: list[str], tags: list[str]) -> tuple[str, list[Span]]:
    """The text, its words between blanks, and its spans."""
    starts = [sum(len(word) + 1 for word in words[:n]) for n in range(len(words))]
    runs = find_runs(tags)
    return " ".join(words), [Span(starts[i], starts[j] + len(words[j]), kind) for i, j, kind in runs]


def convert(
    source: Path, target: Path, hidden: Path, train: int | None = None, dev: int | None = None, test: int | None = None
) -> None:
    """The competition's files in `target`, the hidden test in `hidden`; of each part its first messages, None: all."""
    taught = pl.concat([read_messages(source / TRAIN, "tr", train), read_messages(source / DEV, "dv", dev)])
    taught = taught.unique(pl.col("text").str.to_lowercase(), keep="first", maintain_order=True)
    asked = read_messages(source / TEST, "te", test)
    write_competition(target, hidden, taught, asked.head(3), asked, {"spans": NOTHING}, hide=("source",))


if __name__ == "__main__":
    require(SOURCE)
    convert(SOURCE, ROOT / "input" / "wnut17", ROOT / "output" / "hidden" / NAME)
    print("input/wnut17 is ready:\npython exp/exp005_tags/train.py run=wnut17", shlex.join(WORDS))
