"""The two result types, polars frames with one row per id.

RANKING, of retrieve, fuse, rerank, predict and decide: `items` (document ids, labels or texts) and their `scores` in
descending order; [] allowed. VALUES, of regression: `values`, one number for each target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records

if TYPE_CHECKING:
    import polars as pl


def ranking_schema() -> dict[str, Any]:
    """RANKING: {"id": String, "items": List(String), "scores": List(Float64)}."""
    import polars as pl

    return {"id": pl.String(), "items": pl.List(pl.String()), "scores": pl.List(pl.Float64())}


def values_schema() -> dict[str, Any]:
    """VALUES: {"id": String, "values": List(Float64)}."""
    import polars as pl

    return {"id": pl.String(), "values": pl.List(pl.Float64())}


def make_values(ids: Sequence[str], values: Iterable[Sequence[float]]) -> pl.DataFrame:
    """VALUES; every row has one number for each target."""
    import polars as pl

    numbers = [[float(value) for value in row] for row in values]
    return pl.DataFrame({"id": list(ids), "values": numbers}, schema=values_schema())


def is_values(answer: pl.DataFrame) -> bool:
    """Whether an answer is VALUES, not a RANKING."""
    return "values" in answer.columns


def answer_columns(answer: pl.DataFrame) -> list[str]:
    """The columns of the frame's result type, RANKING or VALUES; it may have others beside them."""
    return list(values_schema() if is_values(answer) else ranking_schema())


def make_ranking(ids: Sequence[str], items: Iterable[Sequence[str]], scores: Iterable[Sequence[float]]) -> pl.DataFrame:
    """A RANKING; each row is sorted by descending score, equal scores keep the order given."""
    import polars as pl

    pairs = [_sort(row_items, row_scores) for row_items, row_scores in zip(items, scores, strict=True)]
    return pl.DataFrame(
        {"id": list(ids), "items": [pair[0] for pair in pairs], "scores": [pair[1] for pair in pairs]},
        schema=ranking_schema(),
    )


def _sort(items: Sequence[str], scores: Sequence[float]) -> tuple[list[str], list[float]]:
    if len(items) != len(scores):
        raise ValueError(f"{len(items)} items with {len(scores)} scores: give one score for each item")
    order = sorted(range(len(items)), key=lambda i: -scores[i])
    return [items[i] for i in order], [float(scores[i]) for i in order]


def with_shares(truth: pl.DataFrame) -> pl.DataFrame:
    """A truth's columns id, items, shares; without shares, right items share equally."""
    import polars as pl

    if "shares" in truth.columns:
        return truth.select("id", "items", "shares")
    return truth.select("id", "items", shares=pl.col("items").list.eval(1.0 / pl.element().len()))


def share_labels(truth: pl.DataFrame, labels: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A truth's ids → the share of each label, scaled to sum to 1: rounded ones do not."""
    shares = {}
    for row, items, own in with_shares(truth).iter_rows():
        share = dict(zip(items, own, strict=True))
        shares[row] = tuple(share.get(label, 0.0) / sum(own) for label in labels)
    return shares


def read_rows(answer: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Id → item → score in their order; for VALUES id → index of the target → value."""
    if is_values(answer):
        values = answer.select("id", "values").iter_rows()
        return {i: {str(target): value for target, value in enumerate(row)} for i, row in values}
    rows = answer.select("id", "items", "scores").iter_rows()
    return {i: dict(zip(items, scores, strict=True)) for i, items, scores in rows}


def top(ranking: pl.DataFrame, k: int) -> pl.DataFrame:
    """The first k items of every row."""
    import polars as pl

    return ranking.with_columns(pl.col("items").list.head(k), pl.col("scores").list.head(k))


def select_rows(ranking: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """The rows of `ids`, in their order."""
    import polars as pl

    return pl.DataFrame({"id": ids}, schema={"id": pl.String()}).join(ranking, "id", "inner", maintain_order="left")


def replace_rows(ranking: pl.DataFrame, better: pl.DataFrame) -> pl.DataFrame:
    """`ranking`, in its order, with the rows that `better` has taken from there."""
    import polars as pl

    rest = ranking.join(better, on="id", how="anti")
    return select_rows(pl.concat([rest, better]), ranking["id"].to_list())


def most_uncertain_first(ranking: pl.DataFrame) -> list[str]:
    """The ids by the margin between the first two scores, smallest first; 0 for a row without two items.

    VALUES have no margin: they stay in their order.
    """
    import polars as pl

    if is_values(ranking):
        return ranking["id"].to_list()
    scores = pl.col("scores").list
    margin = (scores.get(0, null_on_oob=True) - scores.get(1, null_on_oob=True)).fill_null(0.0)
    return ranking.sort(margin, maintain_order=True)["id"].to_list()


def average_rankings(rankings: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One RANKING with the mean score of every item; the mean of log-probabilities is a geometric mean.

    rankings: of the same ids in the same order. An item that a ranking lacks counts as its lowest score of the row.
    Raises ValueError for a row without an item in common: texts have no mean.
    """
    first, *others = rankings
    if not others:
        return first
    ids = first["id"].to_list()
    rows = zip(*(ranking.select("items", "scores").iter_rows() for ranking in rankings), strict=True)
    means = [_mean_scores(row, answers) for row, answers in zip(ids, rows, strict=True)]
    return make_ranking(ids, [list(scores) for scores in means], [list(scores.values()) for scores in means])


def average_by_id(answers: pl.DataFrame) -> pl.DataFrame:
    """The mean of the answers to each id: RANKINGs (see `average_rankings`) or VALUES in one frame.

    The ids are in the order of their first answers.
    """
    rows = answers.group_by("id", maintain_order=True).agg(*answer_columns(answers)[1:])
    ids = rows["id"].to_list()
    if is_values(answers):
        values = rows["values"].to_list()
        return make_values(ids, [[sum(own) / len(own) for own in zip(*row, strict=True)] for row in values])
    means = [
        _mean_scores(row, list(zip(items, scores, strict=True)))
        if len(items) > 1
        else dict(zip(items[0], scores[0], strict=True))
        for row, items, scores in rows.iter_rows()
    ]
    return make_ranking(ids, [list(scores) for scores in means], [list(scores.values()) for scores in means])


def _mean_scores(row: str, answers: Sequence[tuple[list[str], list[float]]]) -> dict[str, float]:
    """Item → mean score. row: the id; answers: items and scores of each."""
    members = [dict(zip(items, scores, strict=True)) for items, scores in answers]
    items = dict.fromkeys(item for scores in members for item in scores)
    if items and not set.intersection(*(set(scores) for scores in members)):
        raise ValueError(f"row {row!r}: the members have no item in common ({list(items)[:3]}): ship one of them")
    return {item: sum(own.get(item, min(own.values())) for own in members) / len(members) for item in items}


def check_answer(answer: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """`answer` itself, if it is a RANKING or VALUES of exactly `ids` in this order; else raises ValueError."""
    return check_values(answer, ids) if is_values(answer) else check_ranking(answer, ids)


def check_values(values: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """`values` itself, if it is VALUES of exactly `ids` in this order, finite and as many in every row."""
    import polars as pl

    if list(values.schema.items()) != list(values_schema().items()):
        raise ValueError(f"values have the columns {values_schema()}, got {dict(values.schema)}")
    _check_ids(values["id"].to_list(), list(ids))
    numbers = pl.col("values")
    problems = {
        "a value is no finite number": numbers.is_null()
        | numbers.list.eval(~pl.element().is_finite() | pl.element().is_null()).list.any(),
        "rows have different numbers of values": numbers.list.len() != numbers.list.len().first(),
    }
    _raise_problems(values, problems)
    return values


def check_ranking(ranking: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """`ranking` itself, if it is a RANKING of exactly `ids` in this order.

    Raises ValueError naming the rows where ids are lost, added, repeated or reordered, where items and scores
    differ in number, an item occurs twice, or scores are not finite or not descending.
    """
    expected = ranking_schema()
    if list(ranking.schema.items()) != list(expected.items()):
        raise ValueError(f"a ranking has the columns {expected}, got {dict(ranking.schema)}")
    _check_ids(ranking["id"].to_list(), list(ids))
    _check_rows(ranking)
    return ranking


def _check_ids(got: list[str], asked: list[str]) -> None:
    if got == asked:
        return
    asked_set, counts = set(asked), Counter(got)
    lost = [i for i in asked if i not in counts]
    added = [i for i in counts if i not in asked_set]
    repeated = [i for i, count in counts.items() if count > 1]
    problems = ", ".join(
        f"{name} {len(ids)} (first {ids[:3]})"
        for name, ids in (("lost", lost), ("added", added), ("repeated", repeated))
        if ids
    )
    raise ValueError(f"{len(asked)} rows asked, {len(got)} rows ranked: {problems or 'same ids in another order'}")


def _check_rows(ranking: pl.DataFrame) -> None:
    import polars as pl

    items, scores = pl.col("items"), pl.col("scores")
    problems = {
        "an item or its list is null": items.is_null()
        | scores.is_null()
        | items.list.eval(pl.element().is_null()).list.any(),
        "items and scores differ in number": items.list.len() != scores.list.len(),
        "an item occurs twice": items.list.n_unique() != items.list.len(),
        "a score is not finite": scores.list.eval(~pl.element().is_finite() | pl.element().is_null()).list.any(),
        "scores are not descending": scores.list.diff(null_behavior="drop").list.max() > 0,
    }
    _raise_problems(ranking, problems)


def _raise_problems(frame: pl.DataFrame, problems: Mapping[str, pl.Expr]) -> None:
    for problem, condition in problems.items():
        rows = frame.filter(condition.fill_null(False))
        if rows.height:
            raise ValueError(f"{problem} in {rows.height} row(s), first {rows['id'].head(3).to_list()}")


def read_oof(run: str, where: str = "") -> pl.DataFrame:
    """oof.parquet of a complete run. Raises FileNotFoundError where it is not here; git keeps the record alone."""
    import polars as pl

    records.read_complete(run, where)
    path = paths.run_folder(run) / "oof.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{where and f'{where}: '}{paths.relative(path)} is not here: train that run here")
    return pl.read_parquet(path)
