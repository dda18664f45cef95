"""What validation rows share with the rows that are trained on. Leaves leaks.json.

Two texts are the same where NFKC, case folding and single spaces make them so, and near where their sets of three
words in a row overlap (Jaccard) by a share that the config names. An empty text repeats nothing: there is nothing in
it to remember. A text without spaces between its words (Chinese, Japanese) is one word, so only its exact repeats
are found.

Fold −1 is `extra` here: rows that are always trained on. Extra and synthetic rows are, and so is what folds.rows and
folds.validate take out of validation; the two look the same. What a teacher learned from a validation row and hands
on through its scores of other rows is not found.
"""

from __future__ import annotations

import functools
import random
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.folds import ALWAYS_TRAIN

if TYPE_CHECKING:
    import polars as pl

SHINGLE = 3  # words
PERMUTATIONS = 256
MISSED = 0.001  # at most this share of the pairs that are just similar enough is never compared
CROWD = 2000  # a text with so many candidates is not a candidate of later ones: time stays linear
VERIFIED = 50  # of a text's candidates, those whose signatures agree most are compared
SHOWN = 3  # ids in a table or an error

# kind → what its rows are, the way out beside leaks.limits
KINDS = {
    "exact_fold": ("have the text of a row in another fold", "drop repeats, or keep them in one fold"),
    "exact_extra": ("have the text of a row of fold −1", "drop those of fold −1"),
    "near_fold": ("have nearly the text of a row in another fold", "keep such rows in one fold, set leaks.columns"),
    "near_extra": ("have nearly the text of a row of fold −1", "drop those of fold −1, set leaks.columns"),
    "group_fold": ("have a row of their group in another fold", "give assign_folds this column with folds.unseen=1"),
    "group_extra": ("have a row of their group in fold −1", "drop those of fold −1; folds.rows splits groups too"),
    "teacher": ("have scores of a teacher that was trained on them", "use the teacher's out-of-fold scores"),
    "evaluated": ("were trained on by the model that they evaluate", "evaluate a fold by a model of the others' rows"),
}


@dataclass
class LeakLimits:
    """Share of a fold's validation rows above which a kind stops the run; 1: it is only reported."""

    exact_fold: float = 0.01
    exact_extra: float = 0.01
    near_fold: float = 0.1
    near_extra: float = 0.1
    group_fold: float = 0.0
    group_extra: float = 0.0
    teacher: float = 1.0
    """Of all rows. Training itself refuses such rows unless distillation.allow_in_sample."""
    evaluated: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if not 0 <= limit <= 1:
                raise ValueError(f"{name} = {limit}: is a share of the validation rows, between 0 and 1")


@dataclass
class LeakSettings:
    columns: list[str] = field(default_factory=list)
    """The texts that are compared, joined; empty: all. Leave out what many rows share by design (a passage)."""
    similarity: float = 0.9
    """Jaccard similarity from which two texts are near."""
    group: str = ""
    """A column of train.csv whose values must not be on both sides of a split; empty: none."""
    limits: LeakLimits = field(default_factory=LeakLimits)

    def __post_init__(self) -> None:
        if not 0.1 <= self.similarity <= 1:
            raise ValueError(f"similarity = {self.similarity}: must lie between 0.1 and 1")
        if "id" in self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns = {self.columns}: name columns of text, each once, and not the id")


@dataclass(frozen=True)
class Finding:
    """Validation rows of a fold that training knows something of."""

    kind: str
    """One of KINDS."""
    fold: int | None
    """None: of no one fold (a teacher's)."""
    ids: tuple[str, ...]
    """The rows concerned, in the order of the table."""
    others: tuple[str, ...]
    """For each of them one row on the training side that it repeats, the first; () where it is the row itself."""
    share: float
    """Of the fold's validation rows."""


def audit(
    rows: pl.DataFrame,
    fold: pl.Series,
    settings: LeakSettings,
    texts: Sequence[str],
    teacher: pl.DataFrame | None = None,
) -> list[Finding]:
    """All that can be found before training.

    rows: id, the texts, and the group's column if one is set; fold: of every row, −1 where it is always trained on.
    texts: names of the text columns, for settings that name none. teacher: as in find_insample_teacher_rows.
    An id that stands on both sides of a split is `evaluated`.
    Raises ValueError for a column that is not there and for a fold that does not fit the rows.
    """
    import polars as pl

    if fold.len() != rows.height or fold.null_count():
        raise ValueError(f"fold has {fold.len() - fold.null_count()} values for {rows.height} rows: give one for each")
    columns = settings.columns or list(texts)
    missing = {*columns, *filter(None, [settings.group])} - {*rows.columns}
    if missing or not columns:
        raise ValueError(f"leaks: no column {sorted(missing) or 'to compare'}, the rows have {rows.columns}")
    ids, folds = rows["id"].to_list(), fold.to_list()
    joined = rows.select(pl.concat_str(columns, separator=" ", ignore_nulls=True)).to_series().to_list()
    findings = find_exact_duplicates(ids, folds, joined)
    findings += find_near_duplicates(ids, folds, joined, settings.similarity)
    if settings.group:
        findings += find_groups_on_both_sides(ids, folds, rows[settings.group].to_list())
    if teacher is not None:
        findings += find_insample_teacher_rows(teacher, ids)
    names = sorted(set(folds) - {ALWAYS_TRAIN})
    trained = {k: rows["id"].filter(fold != k).to_list() for k in names}
    return findings + find_evaluated_training_rows(trained, {k: rows["id"].filter(fold == k).to_list() for k in names})


def find_exact_duplicates(ids: Sequence[str], fold: Sequence[int], texts: Sequence[str | None]) -> list[Finding]:
    """`exact_fold`, `exact_extra`: validation rows whose normalised text stands on the training side too."""
    keys = [normalise_text(text) or None for text in texts]
    return _find_repeats("exact", ids, fold, keys, {key: [key] for key in keys if key})


def find_near_duplicates(
    ids: Sequence[str], fold: Sequence[int], texts: Sequence[str | None], similarity: float
) -> list[Finding]:
    """`near_fold`, `near_extra`: rows with another text whose set of shingles has this Jaccard similarity or more.

    Candidates come from MinHash (Broder, On the resemblance and containment of documents, 1997) in bands; the sets
    themselves decide, so no finding is false, and a pair is missed with a probability of at most MISSED.
    Linear in rows: of a crowd that shares most of its text, only the likest are compared, which is printed.
    """
    keys = [normalise_text(text) or None for text in texts]
    return _find_repeats("near", ids, fold, keys, _find_near_texts({key for key in keys if key}, similarity))


def find_groups_on_both_sides(ids: Sequence[str], fold: Sequence[int], groups: Sequence[Any]) -> list[Finding]:
    """`group_fold`, `group_extra`: validation rows whose group has rows on the training side; null is no group."""
    keys = [None if group is None else str(group) for group in groups]
    return _find_repeats("group", ids, fold, keys, {key: [key] for key in keys if key is not None})


def find_insample_teacher_rows(teacher: pl.DataFrame, ids: Sequence[str]) -> list[Finding]:
    """`teacher`: of the student's rows `ids`, those that the teacher was trained on itself.

    teacher: id and fold of the rows that it scored; fold −1, null or no such column: it was trained on them.
    """
    import polars as pl

    if "fold" in teacher.columns:
        teacher = teacher.filter(pl.col("fold").fill_null(ALWAYS_TRAIN) == ALWAYS_TRAIN)
    known = set(teacher["id"])
    found = tuple(i for i in ids if i in known)
    return [Finding("teacher", None, found, (), len(found) / len(ids))] if found else []


def find_evaluated_training_rows(
    trained: Mapping[int, Collection[str]], validated: Mapping[int, Collection[str]]
) -> list[Finding]:
    """`evaluated`: ids validated in a fold that the fold's model was trained on. Both: fold → ids."""
    findings = []
    for k, rows in sorted(validated.items()):
        known = set(trained.get(k, ()))
        found = tuple(i for i in rows if i in known)
        if found:
            findings.append(Finding("evaluated", k, found, (), len(found) / len(rows)))
    return findings


def normalise_text(text: str | None) -> str:
    """NFKC, case folded, runs of white space as one space, none around it; null is empty."""
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


def _find_repeats(
    what: str,
    ids: Sequence[str],
    fold: Sequence[int],
    keys: Sequence[str | None],
    partners: Mapping[str, Iterable[str]],
) -> list[Finding]:
    """keys: of every row, None where it repeats nothing; partners: key → the keys whose rows repeat it."""
    first: dict[str, dict[int, int]] = {}  # key → fold → its first row there
    for row, (key, k) in enumerate(zip(keys, fold, strict=True)):
        if key is not None:
            first.setdefault(key, {}).setdefault(k, row)
    pairs: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for row, (key, k) in enumerate(zip(keys, fold, strict=True)):
        if key is None or k == ALWAYS_TRAIN:
            continue
        sides: dict[str, int] = {}
        for partner in partners[key]:
            for other, place in first[partner].items():
                if other != k:
                    side = f"{what}_extra" if other == ALWAYS_TRAIN else f"{what}_fold"
                    sides[side] = min(place, sides.get(side, place))
        for side, place in sides.items():
            pairs.setdefault((side, k), []).append((ids[row], ids[place]))
    rows = Counter(fold)
    return [
        Finding(kind, k, tuple(i for i, _ in found), tuple(i for _, i in found), len(found) / rows[k])
        for (kind, k), found in sorted(pairs.items())
    ]


def _find_near_texts(texts: Collection[str], similarity: float) -> dict[str, list[str]]:
    """Every text → the other texts that are near; texts are normalised."""
    near: dict[str, list[str]] = {text: [] for text in texts}
    order = sorted(text for text in texts if text.count(" ") >= SHINGLE - 1)
    random.Random(0).shuffle(order)  # where a crowd is cut, it is not cut to the rows of one kind
    shingles = functools.lru_cache(maxsize=2048)(make_shingles)
    for one, other in _find_candidates(order, similarity):
        if jaccard(shingles(one), shingles(other)) >= similarity:
            near[one].append(other)
            near[other].append(one)
    return near


def _find_candidates(texts: Sequence[str], similarity: float) -> Iterator[tuple[str, str]]:
    """Pairs of texts whose signatures share a band and agree as pairs of this similarity do."""
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=choose_bands(similarity))
    encoded = ([shingle.encode() for shingle in make_shingles(text)] for text in texts)
    hashes = MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=0, hashfunc=zlib.crc32)
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    # The share of equal hashes estimates the similarity: four standard deviations below it no pair is lost.
    floor = similarity - 4 * (similarity * (1 - similarity) / PERMUTATIONS) ** 0.5
    crowded = 0
    for place, minhash in enumerate(hashes):
        signatures[place] = minhash.hashvalues
        found = np.array(index.query(minhash), dtype=np.int64)
        agree = (signatures[found] == signatures[place]).mean(axis=1)
        best = found[np.argsort(-agree, kind="stable")][: (agree >= floor).sum()]
        yield from ((texts[place], texts[other]) for other in best[:VERIFIED])
        if len(found) < CROWD:
            index.insert(place, minhash)
        crowded += len(found) >= CROWD or len(best) > VERIFIED
    if crowded:
        print(
            f"leaks: {crowded} of {len(texts)} texts are like more than {VERIFIED} others and were compared with the "
            f"likest alone: set leaks.columns to texts that rows do not share by design",
            flush=True,
        )


def make_shingles(text: str) -> frozenset[str]:
    """All SHINGLE words in a row of a normalised text; none where it has fewer words."""
    words = text.split()
    return frozenset(map(" ".join, zip(*(words[i:] for i in range(SHINGLE)), strict=False)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets that are not both empty."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def choose_bands(similarity: float) -> tuple[int, int]:
    """Bands and hashes in each: the most hashes with which a pair of this similarity is missed by at most MISSED.

    A pair of similarity s shares no band with probability (1 − s^rows)^bands: Leskovec, Rajaraman, Ullman, Mining of
    Massive Datasets, section 3.4.
    """
    sizes = ((PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS // 2, 0, -1))
    return next((bands, rows) for bands, rows in sizes if (1 - similarity**rows) ** bands <= MISSED)


def check_leaks(findings: Sequence[Finding], settings: LeakSettings) -> None:
    """Raises ValueError for findings above their kind's limit, all at once: kind, share, ids, the way out."""
    above = [finding for finding in findings if finding.share > _limit(finding, settings)]
    if above:
        lines = "\n  - ".join(_describe(finding, settings) for finding in above)
        raise ValueError(f"{len(above)} leak(s) above the limit:\n  - {lines}")


def print_findings(findings: Sequence[Finding], settings: LeakSettings, run: str) -> None:
    from rich.markup import escape  # an id may hold brackets

    if not findings:
        print(f"{run}: no leak found", flush=True)
        return
    rows = [
        [
            *(finding.kind, "all" if finding.fold is None else str(finding.fold)),
            *(str(len(finding.ids)), f"{finding.share:.1%}", f"{_limit(finding, settings):.1%}"),
            *("stops" if finding.share > _limit(finding, settings) else "", escape(_first_rows(finding))),
        ]
        for finding in findings
    ]
    print_table(f"{run}: leak audit", ("kind", "fold", "rows", "share", "limit", "", "first"), rows)


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """A JSON list, one object a finding."""
    records.write_json(path, [asdict(finding) for finding in findings])


def _limit(finding: Finding, settings: LeakSettings) -> float:
    limit: float = getattr(settings.limits, finding.kind)
    return limit


def _first_rows(finding: Finding) -> str:
    if finding.others:
        shown = [f"{i} = {other}" for i, other in zip(finding.ids[:SHOWN], finding.others, strict=False)]
    else:
        shown = list(finding.ids[:SHOWN])
    return ", ".join(shown) + (" …" if len(finding.ids) > SHOWN else "")


def _describe(finding: Finding, settings: LeakSettings) -> str:
    what, way_out = KINDS[finding.kind]
    where = "" if finding.fold is None else f" of fold {finding.fold}"
    return (
        f"{finding.kind}: {len(finding.ids)} row(s){where} {what} ({finding.share:.1%}, limit "
        f"{_limit(finding, settings):.1%}), first {_first_rows(finding)}: {way_out}, or raise "
        f"leaks.limits.{finding.kind}"
    )
