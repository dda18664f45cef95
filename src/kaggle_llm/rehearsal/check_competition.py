"""`kaggle-llm check COMP`: whether a competition's module fits its files, in seconds and without a model.

It looks at what a training or a rehearsal would stumble over after minutes: tables, cells, metric, folds, leaks, and
the hidden test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import (
    TEST,
    TRAIN,
    Competition,
    CompetitionSettings,
    compare_ids,
    load_competition,
)
from kaggle_llm.competition.folds import FoldSettings, describe_missing_classes, split_rows
from kaggle_llm.competition.leaks import LeakSettings, check_leaks, find_leaks
from kaggle_llm.competition.rankings import is_values, make_ranking
from kaggle_llm.rehearsal.checks import Check, note_errors
from kaggle_llm.rehearsal.stage import find_solution, hidden_test

if TYPE_CHECKING:
    import polars as pl

UNLIKELY = -50.0  # the log-probability of a label that is not right


def check_competition(settings: CompetitionSettings) -> list[Check]:
    """One Check for each question; a question that cannot be asked because an earlier one failed is left out."""
    competition = load_competition(settings)
    questions: list[tuple[str, Callable[[Competition], str]]] = [
        ("tables", describe_tables),
        ("cells", compare_cells),
        ("metric", describe_best_score),
        ("folds", describe_folds),
        ("leaks", describe_leaks),
        ("hidden test", describe_hidden_test),
    ]
    checks: list[Check] = []
    for name, ask in questions:
        with note_errors(name, checks):
            checks.append(Check(name, True, ask(competition)))
        if not checks[0].ok:  # without tables nothing else can be asked
            break
    return checks


def print_checks(name: str, checks: list[Check]) -> None:
    rows = [[check.name, "ok" if check.ok else "FAILED", check.detail] for check in checks]
    print_table(f"check of {name}", ("question", "", "answer"), rows)


def describe_tables(competition: Competition) -> str:
    """Rows of every table, read and checked; raises what `Competition.check` raises."""
    competition.check()
    compare_sample(competition)
    sizes = [f"{name} {competition.table(name).height} rows" for name in competition.tables]
    return f"{', '.join(sizes)}; the sample has {competition.sample().columns}"


def compare_sample(competition: Competition) -> None:
    """Raises ValueError where test set and sample have different ids, unless the sample's rows are no test rows."""
    sample, test = competition.sample(), competition.tables[TEST]
    ids = competition.table(TEST)["id"].to_list()
    problems = compare_ids(ids, sample.to_series(0).to_list()) if sample.columns[0] == test.id else []
    if problems:
        raise ValueError(
            f"{competition.file_name(TEST)} does not fit the sample: {'; '.join(problems)}: make read() give "
            f"the sample's ids, or override submission() and ranking_of()"
        )


def compare_cells(competition: Competition) -> str:
    """Write the right answers as a submission and read them; raises ValueError where they changed."""
    right = rank_truth(competition)
    submission = competition.submission(right)
    column = "values" if is_values(right) else "items"
    again = dict(competition.ranking_of(submission).select("id", column).iter_rows())
    triples = [(row, own, again.get(row, [])) for row, own in right.select("id", column).iter_rows()]
    other = [(row, own, read) for row, own, read in triples if not is_same(own, read, competition.every_label)]
    if other:
        row, own, read = other[0]
        raise ValueError(
            f"{len(other)} of {right.height} right answers change when written and read, first {row!r}: {own} became "
            f"{read}: cell() and items_in(), or cells() and answer_in(), must be inverses"
        )
    return f"{right.height} right answers are written and read again; first: {submission.row(0)[1:]}"


def is_same(own: list[Any], read: list[Any], every_label: bool) -> bool:
    """Whether an answer came back unchanged; a cell may cut it, and equal probabilities may swap."""
    return sorted(own) == sorted(read) if every_label else own[: len(read)] == read and bool(read) == bool(own)


def rank_truth(competition: Competition) -> pl.DataFrame:
    """The right answers to train.csv: VALUES, or a RANKING of the right items, or of every label."""
    truth = competition.truth(competition.table(TRAIN))
    if is_values(truth):
        return truth.select("id", "values")
    items = truth["items"].to_list()
    shares = truth["shares"].to_list() if "shares" in truth.columns else [[1.0] * len(right) for right in items]
    labels = list(competition.legal_items() or ()) if competition.every_label else []
    rows = [[*right, *(label for label in labels if label not in right)] for right in items]
    scores = [[*map(math.log, own), *[UNLIKELY] * (len(row) - len(own))] for row, own in zip(rows, shares, strict=True)]
    return make_ranking(truth["id"].to_list(), rows, scores)


def describe_best_score(competition: Competition) -> str:
    metric, truth = competition.metric, competition.truth(competition.table(TRAIN))
    direction = "greater" if metric.greater_is_better else "lower"
    score = metric.score(rank_truth(competition), truth)
    return f"{metric.name}, {direction} is better; right answers score {score:.4f}"


def make_folds(competition: Competition, train: pl.DataFrame) -> FoldSettings:
    """The usual folds, or as many as there are groups."""
    usual = FoldSettings()
    groups = train[competition.group].n_unique() if competition.group else usual.count
    return replace(usual, count=max(min(usual.count, groups), 2))


def describe_folds(competition: Competition) -> str:
    train = competition.table(TRAIN)
    settings = make_folds(competition, train)
    fold = split_rows(competition, train, settings)
    sizes = ", ".join(str((fold == k).sum()) for k in range(settings.count))
    fewer = f" (set folds.count={settings.count})" if settings.count < FoldSettings().count else ""
    group = competition.group
    kept = f"{train[group].n_unique()} groups of {group!r}{fewer}" if group else "no groups"
    missing = describe_missing_classes(competition, train, fold)
    return "; ".join([f"{settings.count} folds of {sizes} rows, {kept}", *missing])


def describe_leaks(competition: Competition) -> str:
    """Raises ValueError for a leak above its limit."""
    train, settings = competition.table(TRAIN), LeakSettings()
    fold = split_rows(competition, train, make_folds(competition, train))
    leaks = find_leaks(train, fold, settings, competition.tables[TRAIN].texts)
    check_leaks(leaks, settings)
    return f"{len(leaks)} below their limits" if leaks else "none found"


def describe_hidden_test(competition: Competition) -> str:
    """The rows that a rehearsal will stage; raises ValueError where they do not fit the public test set."""
    test, truth, origin = hidden_test(competition.settings, None)
    given = find_solution(paths.hidden_folder(competition.folder.name)) is not None
    public, rows = competition.raw(TEST), test.rows
    if rows.columns != public.columns:
        raise ValueError(f"{origin}: {test.file} has the columns {rows.columns}, the public one {public.columns}")
    ids = set(competition.tables[TEST].read_ids(rows))
    tables = {"the public test set": TEST, competition.file_name(TRAIN): TRAIN} if given else {}
    for where, table in tables.items():
        if taken := ids.intersection(competition.ids_in_file(table)):
            raise ValueError(f"{origin}: {len(taken)} id(s) are in {where} too, first {min(taken)!r}")
    labelled = f"{truth.height} of them with a label" if truth.height != rows.height else "all with a label"
    source = origin if given else "the training table, as no hidden test was given"
    return f"{rows.height} rows, {labelled}, from {source}"
