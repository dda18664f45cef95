"""Leaks: what validation rows share with the rows that are trained on. Leaves leaks.json.

Two texts are the same where NFKC, case folding and single spaces make them equal. They are near duplicates where their
sets of three consecutive words have a Jaccard similarity of leaks.similarity; a character of a script without spaces
(Chinese, Japanese, Thai) counts as a word. Empty texts are never duplicates.

`extra` is fold −1, the rows that are always trained on: extra and synthetic rows, and rows that folds.rows and
folds.validate take out of validation. Not found: what a teacher model learned from a validation row and passes on
through its scores of other rows.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.base.words import PIECE, fold_text
from kaggle_llm.competition.folds import ALWAYS_TRAIN

if TYPE_CHECKING:
    import polars as pl

SHINGLE = 3  # words
PERMUTATIONS = 256
MISSED = 0.001  # the largest probability of missing a pair that is just similar enough
CROWD = 2000  # a text with as many candidates is not compared with later texts: time stays linear
VERIFIED = 50  # candidates of a text that are compared, those with the most similar signatures
IDS_SHOWN = 3  # ids in a table or an error

# kind → what is wrong with its rows, and what to do, other than raising leaks.limits
KINDS = {
    "exact_fold": ("have the text of a row in another fold", "drop repeats, or keep them in one fold"),
    "exact_extra": ("have the text of a row of fold −1", "drop those of fold −1"),
    "near_fold": ("have nearly the text of a row in another fold", "keep such rows in one fold, set leaks.columns"),
    "near_extra": ("have nearly the text of a row of fold −1", "drop those of fold −1, set leaks.columns"),
    "group_fold": (
        "have a row of their group in another fold",
        "name it as the training Table's group, folds.unseen=1",
    ),
    "group_extra": ("have a row of their group in fold −1", "drop those of fold −1; folds.rows splits groups too"),
    "teacher": ("have scores of a teacher that was trained on them", "use the teacher's out-of-fold scores"),
    "evaluated": ("were trained on by the model that they evaluate", "evaluate a fold by a model of the others' rows"),
}


@dataclass
class LeakLimits:
    """The largest allowed share of a fold's validation rows for each kind of leak; 1: it is only reported."""

    exact_fold: float = 0.01
    exact_extra: float = 0.01
    near_fold: float = 0.1
    near_extra: float = 0.1
    group_fold: float = 0.0
    group_extra: float = 0.0
    teacher: float = 1.0
    """A share of all rows. Training itself refuses such rows unless distillation.allow_in_sample."""
    evaluated: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if not 0 <= limit <= 1:
                raise ValueError(f"{name} = {limit}: is a share of the validation rows, between 0 and 1")


@dataclass
class LeakSettings:
    columns: list[str] = field(default_factory=list)
    """The text columns that are compared, joined; empty: all. Leave out texts that rows share by design (a passage)."""
    similarity: float = 0.9
    """Jaccard similarity from which two texts are near duplicates."""
    group: str = ""
    """A column of train.csv whose values must not be on both sides of a split; empty: none."""
    limits: LeakLimits = field(default_factory=LeakLimits)

    def __post_init__(self) -> None:
        if not 0.1 <= self.similarity <= 1:
            raise ValueError(f"similarity = {self.similarity}: must lie between 0.1 and 1")
        if "id" in self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns = {self.columns}: name columns of text, each once, and not the id")


@dataclass(frozen=True)
class Leak:
    """Validation rows of a fold that leak into its training rows."""

    kind: str
    """One of KINDS."""
    fold: int | None
    """None: the leak concerns all folds, as a teacher's does."""
    ids: tuple[str, ...]
    """The validation rows, in the order of the table."""
    others: tuple[str, ...]
    """For each of these ids the first training row that it repeats; () where the row itself is trained on."""
    share: float
    """The share of the fold's validation rows."""


def find_leaks(
    rows: pl.DataFrame,
    fold: pl.Series,
    settings: LeakSettings,
    texts: Sequence[str],
    teacher: pl.DataFrame | None = None,
) -> list[Leak]:
    """All leaks that can be found before training.

    rows: id, the texts, and the group's column if one is set; fold: of every row, −1 where it is always trained on.
    texts: the text columns where the settings name none. teacher: as in find_insample_teacher_rows.
    An id on both sides of a split is `evaluated`.
    Raises ValueError for a missing column and for a fold that does not fit the rows.
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
    leaks = find_exact_duplicates(ids, folds, joined)
    leaks += find_near_duplicates(ids, folds, joined, settings.similarity)
    if settings.group:
        leaks += find_groups_on_both_sides(ids, folds, rows[settings.group].to_list())
    if teacher is not None:
        leaks += find_insample_teacher_rows(teacher, ids)
    validated = {k: rows["id"].filter(fold == k).to_list() for k in sorted(set(folds) - {ALWAYS_TRAIN})}
    trained = {k: rows["id"].filter(fold != k).to_list() for k in validated}
    return leaks + find_evaluated_training_rows(trained, validated)


def find_exact_duplicates(ids: Sequence[str], fold: Sequence[int], texts: Sequence[str | None]) -> list[Leak]:
    """`exact_fold`, `exact_extra`: validation rows whose normalised text a training row has too."""
    keys = [normalise_text(text) or None for text in texts]
    return _find_repeats("exact", ids, fold, keys, {key: [key] for key in keys if key})


def find_near_duplicates(
    ids: Sequence[str], fold: Sequence[int], texts: Sequence[str | None], similarity: float
) -> list[Leak]:
    """`near_fold`, `near_extra`: rows with a different text whose shingles have this Jaccard similarity or more.

    Candidates come from MinHash (Broder, On the resemblance and containment of documents, 1997) in bands. Their exact
    similarity decides, so none is a false alarm, and a pair is missed with a probability of at most MISSED.
    Time is linear in rows: where many texts are alike, only the most similar are compared, and a message says so.
    """
    keys = [normalise_text(text) or None for text in texts]
    return _find_repeats("near", ids, fold, keys, _find_near_texts({key for key in keys if key}, similarity))


def find_groups_on_both_sides(ids: Sequence[str], fold: Sequence[int], groups: Sequence[Any]) -> list[Leak]:
    """`group_fold`, `group_extra`: validation rows whose group has training rows; null is no group."""
    keys = [None if group is None else str(group) for group in groups]
    return _find_repeats("group", ids, fold, keys, {key: [key] for key in keys if key is not None})


def find_insample_teacher_rows(teacher: pl.DataFrame, ids: Sequence[str]) -> list[Leak]:
    """`teacher`: those of the rows `ids` that the teacher model was trained on.

    teacher: id and fold of the rows that it scored; with fold −1, null or no such column it was trained on them.
    """
    import polars as pl

    if "fold" in teacher.columns:
        teacher = teacher.filter(pl.col("fold").fill_null(ALWAYS_TRAIN) == ALWAYS_TRAIN)
    trained = set(teacher["id"])
    leaked = tuple(row for row in ids if row in trained)
    return [Leak("teacher", None, leaked, (), len(leaked) / len(ids))] if leaked else []


def find_evaluated_training_rows(
    trained: Mapping[int, Collection[str]], validated: Mapping[int, Collection[str]]
) -> list[Leak]:
    """`evaluated`: rows that the model of the fold that validates them was trained on. Both: fold → ids."""
    leaks = []
    for k, rows in sorted(validated.items()):
        seen = set(trained.get(k, ()))
        leaked = tuple(row for row in rows if row in seen)
        if leaked:
            leaks.append(Leak("evaluated", k, leaked, (), len(leaked) / len(rows)))
    return leaks


def normalise_text(text: str | None) -> str:
    """NFKC, case folded, nothing invisible, white space as single spaces, none at the ends; null is empty."""
    return " ".join(fold_text(text or "").split())


def _find_repeats(
    prefix: str,
    ids: Sequence[str],
    fold: Sequence[int],
    keys: Sequence[str | None],
    partners: Mapping[str, Iterable[str]],
) -> list[Leak]:
    """The leaks `prefix`_fold and `prefix`_extra.

    keys: of every row (a text or a group), None to leave it out. partners: key → the keys of rows that repeat it.
    """
    first: dict[str, dict[int, int]] = {}  # key → fold → its first row there
    for row, (key, k) in enumerate(zip(keys, fold, strict=True)):
        if key is not None:
            first.setdefault(key, {}).setdefault(k, row)
    pairs: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for row, (key, k) in enumerate(zip(keys, fold, strict=True)):
        if key is None or k == ALWAYS_TRAIN:
            continue
        repeated: dict[str, int] = {}  # kind → the first training row that this row repeats
        for partner in partners[key]:
            for other_fold, other in first[partner].items():
                if other_fold != k:
                    kind = f"{prefix}_extra" if other_fold == ALWAYS_TRAIN else f"{prefix}_fold"
                    repeated[kind] = min(other, repeated.get(kind, other))
        for kind, other in repeated.items():
            pairs.setdefault((kind, k), []).append((ids[row], ids[other]))
    rows = Counter(fold)
    return [
        Leak(kind, k, tuple(row for row, _ in own), tuple(other for _, other in own), len(own) / rows[k])
        for (kind, k), own in sorted(pairs.items())
    ]


def _find_near_texts(texts: Collection[str], similarity: float) -> dict[str, list[str]]:
    """Normalised text → its near duplicates."""
    near: dict[str, list[str]] = {text: [] for text in texts}
    order = sorted(text for text in texts if len(PIECE.findall(text)) >= SHINGLE)
    random.Random(0).shuffle(order)  # where not all are compared, those compared are a random sample
    shingles = functools.lru_cache(maxsize=2048)(make_shingles)
    for text, other in _find_candidates(order, similarity):
        if jaccard(shingles(text), shingles(other)) >= similarity:
            near[text].append(other)
            near[other].append(text)
    return near


def _find_candidates(texts: Sequence[str], similarity: float) -> Iterator[tuple[str, str]]:
    """Pairs of texts whose MinHash signatures share a band and agree about as often as `similarity`."""
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=choose_bands(similarity))
    encoded = ([shingle.encode() for shingle in make_shingles(text)] for text in texts)
    hashes = MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=0, hashfunc=zlib.crc32)
    signatures = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    # The share of equal hashes estimates the similarity; four standard deviations below it hardly a pair is lost.
    lowest = similarity - 4 * (similarity * (1 - similarity) / PERMUTATIONS) ** 0.5
    crowded = 0
    for number, minhash in enumerate(hashes):
        signatures[number] = minhash.hashvalues
        candidates = np.array(index.query(minhash), dtype=np.int64)
        agreement = (signatures[candidates] == signatures[number]).mean(axis=1)
        best = candidates[np.argsort(-agreement, kind="stable")][: (agreement >= lowest).sum()]
        yield from ((texts[number], texts[other]) for other in best[:VERIFIED])
        if len(candidates) < CROWD:
            index.insert(number, minhash)
        crowded += len(candidates) >= CROWD or len(best) > VERIFIED
    if crowded:
        print(
            f"leaks: {crowded} of {len(texts)} texts are like more than {VERIFIED} others and were compared only with "
            f"the most similar ones: set leaks.columns to texts that rows do not share by design",
            flush=True,
        )


def make_shingles(text: str) -> frozenset[str]:
    """All runs of SHINGLE consecutive words of a normalised text; none where it has fewer words."""
    words = PIECE.findall(text)
    return frozenset(map(" ".join, zip(*(words[i:] for i in range(SHINGLE)), strict=False)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets that are not both empty."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def choose_bands(similarity: float) -> tuple[int, int]:
    """(bands, rows in a band): the most rows with which a pair of this similarity is missed with at most MISSED.

    A pair of similarity s shares no band with probability (1 − s^rows)^bands: Leskovec, Rajaraman, Ullman, Mining of
    Massive Datasets, section 3.4.
    """
    sizes = ((PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS // 2, 0, -1))
    return next((bands, rows) for bands, rows in sizes if (1 - similarity**rows) ** bands <= MISSED)


def check_leaks(leaks: Sequence[Leak], settings: LeakSettings) -> None:
    """Raises ValueError that names all leaks above their kind's limit: kind, share, ids, the way out."""
    above = [leak for leak in leaks if leak.share > _limit(leak, settings)]
    if above:
        lines = "\n  - ".join(_describe_leak(leak, settings) for leak in above)
        raise ValueError(f"{len(above)} leak(s) above the limit:\n  - {lines}")


def print_leaks(leaks: Sequence[Leak], settings: LeakSettings, run: str) -> None:
    from rich.markup import escape  # an id may hold brackets

    if not leaks:
        print(f"{run}: no leak found", flush=True)
        return
    rows = [
        [
            *(leak.kind, "all" if leak.fold is None else str(leak.fold)),
            *(str(len(leak.ids)), f"{leak.share:.1%}", f"{_limit(leak, settings):.1%}"),
            *("stops" if leak.share > _limit(leak, settings) else "", escape(_first_rows(leak))),
        ]
        for leak in leaks
    ]
    print_table(f"{run}: leak audit", ("kind", "fold", "rows", "share", "limit", "", "first"), rows)


def write_leaks(leaks: Sequence[Leak], path: Path) -> None:
    """A JSON list, one object a leak."""
    records.write_json(path, [asdict(leak) for leak in leaks])


def _limit(leak: Leak, settings: LeakSettings) -> float:
    limit: float = getattr(settings.limits, leak.kind)
    return limit


def _first_rows(leak: Leak) -> str:
    pairs = zip(leak.ids[:IDS_SHOWN], leak.others, strict=False)
    shown = [f"{row} = {other}" for row, other in pairs] if leak.others else leak.ids[:IDS_SHOWN]
    return ", ".join(shown) + (" …" if len(leak.ids) > IDS_SHOWN else "")


def _describe_leak(leak: Leak, settings: LeakSettings) -> str:
    problem, way_out = KINDS[leak.kind]
    of_fold = "" if leak.fold is None else f" of fold {leak.fold}"
    return (
        f"{leak.kind}: {len(leak.ids)} row(s){of_fold} {problem} ({leak.share:.1%}, limit "
        f"{_limit(leak, settings):.1%}), first {_first_rows(leak)}: {way_out}, or raise leaks.limits.{leak.kind}"
    )
