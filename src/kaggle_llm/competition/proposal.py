"""What the files of a competition look like: a proposal of its form, tables and metric, for `kaggle-llm init`.

`experiment/first.py` writes the module and an experiment of it. Whatever is assumed, because the files do not say it,
stands in `Proposal.assumed` and later as a comment in the module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.competition.competition import TEST, TRAIN
from kaggle_llm.competition.data_files import strip_zeros
from kaggle_llm.competition.forms import LABELS, to_number
from kaggle_llm.competition.inspect_files import (
    Files,
    find_document_file,
    find_id,
    find_joined,
    find_train_id,
    find_wide,
    holds_lists,
    is_identifier,
    is_part,
    is_words,
    read_files,
    shape,
    stem,
)
from kaggle_llm.competition.metric_names import NUMBERS, PROBABILITIES, split_metric, write_metric
from kaggle_llm.competition.span_forms import TOKENS
from kaggle_llm.competition.table import Table

if TYPE_CHECKING:
    import polars as pl

LABELS_AT_MOST = 60  # different targets that are classes; more are texts or numbers
LABEL_CHARACTERS = 100  # a longer target is a text


@dataclass(frozen=True)
class Answers:
    """What the user said; empty: it is assumed from the files."""

    metric: str = ""
    """A key of metric_names.METRICS, with its number after it: map@25, f5."""
    group: str = ""
    """The column whose rows stay on one side of a split; "none": there is none."""
    target: str = ""
    """The column of train that is predicted."""
    texts: tuple[str, ...] = ()
    """The columns that the model reads."""


@dataclass
class Proposal:
    name: str
    form: str = ""
    """A class of competition/forms.py or span_forms.py."""
    tables: dict[str, Table] = field(default_factory=dict)
    documents: str = ""
    document_file: tuple[str, str] | None = None
    """The documents' file and its id."""
    labels: tuple[str, ...] | dict[str, str] = ()
    cut: int = 0
    metric: str = ""
    """Python code."""
    glued: tuple[str, ...] = ()
    """Columns of train that make up the target, with a colon between."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Text → characters of its longest one in train."""
    empty_texts: bool = False
    """Whether train has rows with an empty text."""
    groups: int = 0
    """Number of groups; 0: there are none."""
    answers: tuple[str, ...] = ()
    """Columns of answers that the label chooses between."""
    types: tuple[str, ...] = ()
    """The types of spans."""
    assumed: dict[str, str] = field(default_factory=dict)
    """Attribute → what was assumed, and the flag that changes it."""

    @property
    def texts(self) -> tuple[str, ...]:
        return self.tables[TEST].texts


def propose(folder: Path, name: str, answers: Answers) -> Proposal:
    """A proposal for a competition's folder; raises ValueError where its files cannot be understood."""
    files, proposal = read_files(folder), Proposal(name)
    id_column, wide = find_id(files), find_wide(files)
    spec = Table(id_column if wide else find_train_id(files, id_column), (), wide=wide)
    if spec.id != id_column:
        proposal.assumed["id"] = f"the id of {files.train_file} is {spec.id}, of {files.test_file} {id_column}"
    joined = find_joined(files)
    train, test = (shape(files, part, spec, joined) for part in (TRAIN, TEST))
    if set(TOKENS) <= set(test.columns):
        spec = replace(spec, target="spans", kept=TOKENS)
        propose_tokens(files, proposal)
    else:
        spec = propose_target(files, train, test, spec, answers, proposal)
    check_columns(answers, files, train, test)
    texts = list(dict.fromkeys(answers.texts)) or find_texts(files, train, test, spec, proposal)
    check_names(texts)
    find_answers(texts, proposal)
    spec = replace(
        spec,
        texts=tuple(texts),
        group=find_group(spec, joined, train, test, answers, proposal),
        lists=tuple(text for text in texts if holds_lists(test, text)),
    )
    unlabelled = replace(spec, id=id_column, target="", group="", numbers=())
    for part, table, file in ((TRAIN, spec, files.train_file), (TEST, unlabelled, files.test_file)):
        own = "" if stem(file) == part else file
        proposal.tables[part] = replace(table, file=own, joined=joined[part])
    proposal.tables |= find_documents(files, proposal)
    proposal.groups = train[spec.group].n_unique() if spec.group else 0
    proposal.lengths = {text: max((len(str(cell)) for cell in train[text].drop_nulls()), default=0) for text in texts}
    proposal.empty_texts = any(train[text].null_count() for text in texts)
    if not answers.metric:
        proposal.assumed["metric"] = "the usual one of this form; say another with --metric"
    proposal.metric = write_metric(proposal.form, proposal.labels, proposal.cut, answers.metric)
    return proposal


def propose_target(
    files: Files, train: pl.DataFrame, test: pl.DataFrame, spec: Table, answers: Answers, proposal: Proposal
) -> Table:
    """Sets the form; returns the table with its target."""
    targets = [answers.target] if answers.target else find_targets(files, train, test, spec, proposal)
    check_targets(files, train, proposal.glued or targets)
    find_form(files, train, targets, split_metric(answers.metric)[0], proposal)
    if proposal.form in ("NumberColumns", "ProbabilityColumns"):
        return replace(spec, numbers=tuple(targets))
    if isinstance(proposal.labels, dict):
        target = targets[0] if len(targets) == 1 else "label"
        return replace(spec, target=target, numbers=tuple(proposal.labels.values()))
    return replace(spec, target=targets[0])


def find_targets(files: Files, train: pl.DataFrame, test: pl.DataFrame, spec: Table, proposal: Proposal) -> list[str]:
    """The columns after the id of the sample submission, else the first one that test lacks."""
    cells = files.sample.columns[1:]
    lacking = [name for name in train.columns if name not in (spec.id, *test.columns)]
    if set(cells) <= set(lacking):
        return cells
    if set(parts := cells[0].split(":")) <= set(lacking):
        proposal.glued = tuple(parts)
        return cells
    if not lacking:
        raise ValueError(f"{files.train_file} has no column that {files.test_file} lacks: there is nothing to predict")
    named = [name for name in lacking if names_labels(cells, train[name])]
    if len(named or lacking) > 1:
        proposal.assumed["target"] = f"the first of {', '.join(named or lacking)}; say another with --target"
    return (named or lacking)[:1]


def names_labels(cells: Sequence[str], targets: pl.Series) -> bool:
    """Whether the sample submission has a column for each label."""
    return len(cells) > 1 and set(cells) == set(targets.drop_nulls())


def check_targets(files: Files, train: pl.DataFrame, targets: Sequence[str]) -> None:
    """Raises ValueError for columns that are not there, hold lists, or always the same."""
    for name in targets:
        if name not in train.columns:
            raise ValueError(f"--target {name}: {files.train_file} has {train.columns}")
        values = train[name].drop_nulls()
        if holds_lists(train, name):
            longest = max(map(str, values.to_list()), key=len)
            raise ValueError(
                f"{files.train_file}: {name} holds lists, such as {longest[:60]}: write the module by hand, with a "
                f"truth() that reads them (docs/competition.md), or say another column with --target"
            )
        if values.n_unique() < 2:
            raise ValueError(
                f"{files.train_file}: {name} has no two different values in {train.height} row(s): there is nothing to "
                f"learn; say another column with --target, or put more rows into the file"
            )


def check_columns(answers: Answers, files: Files, train: pl.DataFrame, test: pl.DataFrame) -> None:
    """Raises ValueError for columns that a person named and that are not there."""
    group = () if answers.group in ("", "none") else (answers.group,)
    for flag, names, file, rows in (
        ("--group", group, files.train_file, train),
        ("--text", answers.texts, files.train_file, train),
        ("--text", answers.texts, files.test_file, test),
    ):
        for name in names:
            if name not in rows.columns:
                raise ValueError(f"{flag} {name}: {file} has {rows.columns}")


def find_form(files: Files, train: pl.DataFrame, targets: list[str], metric: str, proposal: Proposal) -> None:
    """Sets form, labels and cut."""
    cells = files.sample.columns[1:]
    if len(targets) > 1:
        set_columns(train, targets, metric, proposal)
        return
    values = glue(train, proposal.glued) if proposal.glued else strip_zeros(train[targets[0]])
    if names_labels(cells, values):
        proposal.form, proposal.labels = "LabelColumns", {name: name for name in cells}
    elif len(cells) > 1:
        raise ValueError(
            f"the sample submission has the columns {cells}, which {files.train_file} lacks: write the module by hand, "
            f"with cell_columns(), cells() and answer_in() (docs/competition.md)"
        )
    else:
        set_cell(files, values.drop_nulls(), metric, proposal)


def set_columns(train: pl.DataFrame, targets: list[str], metric: str, proposal: Proposal) -> None:
    """The form of a submission with the columns that train has."""
    import polars as pl

    numbers = train.select(pl.col(targets).cast(pl.Float64, strict=False))
    if ((numbers.sum_horizontal() - 1).abs() < 1e-3).all():
        proposal.form, proposal.labels = "LabelColumns", {shorten(name, targets): name for name in targets}
        return
    is_answered = all(set(column) <= {0, 1} for column in numbers) and metric not in NUMBERS
    proposal.form = "ProbabilityColumns" if is_answered else "NumberColumns"


def set_cell(files: Files, values: pl.Series, metric: str, proposal: Proposal) -> None:
    """The form of a submission with one cell. values: the targets of train."""
    import polars as pl

    cell = str(files.sample[:, 1].first() or "")
    distinct = values.unique().sort()
    numbers = distinct.cast(pl.Float64, strict=False)
    numeric, whole = not numbers.null_count(), bool((numbers == numbers.round()).all())
    few = distinct.len() <= LABELS_AT_MOST and 2 * distinct.len() <= values.len()
    items = cell.split()
    single = find_document_file(files, distinct)
    proposal.document_file = single or find_document_file(files, distinct.str.split(" ").explode().unique())
    if proposal.document_file:
        proposal.form, proposal.cut = "RankedItems" if single else "SeveralItems", max(len(items), 1)
    elif len(items) > 1 and set(items) <= set(distinct):
        is_options = set(distinct) <= set(files.test.columns)
        proposal.form, proposal.cut = "RankedItems" if is_options else "RankedLabels", len(items)
        proposal.labels = tuple(distinct) if is_options else ()
    elif distinct.len() == 2 and (
        metric in PROBABILITIES or (not math.isnan(to_number(cell)) and cell not in distinct)
    ):
        proposal.form, proposal.labels = "OneProbability", tuple(distinct)
    elif numeric and few and whole and metric not in NUMBERS:
        proposal.form, proposal.labels = "OneLabel", tuple(sorted(distinct, key=float))
        if distinct.len() > 2:
            proposal.assumed["labels"] = "levels in order; for names, say head.task=classification"
    elif numeric:
        proposal.form = "NumberColumns"
        if whole and not few:
            proposal.assumed["form"] = "a number that a head estimates; an answer that is worked out is one of Texts"
    elif few and (distinct.str.len_chars() <= LABEL_CHARACTERS).all():
        proposal.form, proposal.labels = "OneLabel", tuple(distinct)
    else:
        proposal.form = "Texts"
        if 2 * distinct.len() <= values.len():
            proposal.assumed["form"] = f"a text, of {distinct.len()} different ones; classes are OneLabel with labels"


def glue(train: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Columns as one, with a colon between; an empty cell is NA, as pandas writes it."""
    import polars as pl

    return train.select(pl.concat_str(pl.col(list(columns)).fill_null("NA"), separator=":")).to_series()


def shorten(name: str, names: Sequence[str]) -> str:
    """A column's name without the words that all of them begin with: winner_tie → tie."""
    words = [other.split("_") for other in names]
    shortest = min(map(len, words))
    common = next((n for n in range(shortest) if len({tuple(word[: n + 1]) for word in words}) > 1), 0)
    return "_".join(name.split("_")[common:])


def find_texts(files: Files, train: pl.DataFrame, test: pl.DataFrame, spec: Table, proposal: Proposal) -> list[str]:
    """The columns of words that train and test have."""
    wide = spec.wide
    parts = [name for name in test.columns if is_part(name, wide)]
    skipped = {spec.id, spec.raw_id, wide.right if wide else "", *parts}
    texts = [
        name
        for name in test.columns
        if name in train.columns and name not in skipped and not is_identifier(name) and is_words(train[name])
    ]
    if not texts:
        raise ValueError(
            f"{files.test_file} has {test.columns}: none is a column of words that {files.train_file} has too; say the "
            f"columns that the model reads with --text"
        )
    proposal.assumed["texts"] = "all columns of words; say others with --text"
    return texts


def check_names(texts: Sequence[str]) -> None:
    """Raises ValueError for a column whose name cannot stand in a prompt's braces, as in {question}."""
    wrong = [text for text in texts if text.isdecimal() or re.search(r"[][{}.:!]", text)]
    if wrong:
        raise ValueError(
            f"prompts name columns in braces, and cannot name {wrong}: say other columns with --text, or write the "
            f"module by hand, with a read() that gives them other names (docs/competition.md)"
        )


def find_answers(texts: Sequence[str], proposal: Proposal) -> None:
    """Columns of two or more answers that the labels choose between: A for A, response_a for the label model_a."""
    if proposal.labels and set(proposal.labels) <= set(texts):
        proposal.answers = tuple(proposal.labels)
        return
    endings = [str(label).rpartition("_")[2] for label in proposal.labels]
    for start in (text.removesuffix(endings[0]) for text in texts if endings and text.endswith(f"_{endings[0]}")):
        columns = [f"{start}{ending}" for ending in endings if f"{start}{ending}" in texts]
        if len(columns) > 1:
            proposal.answers = tuple(columns)


def find_group(
    spec: Table,
    joined: Mapping[str, Mapping[str, str]],
    train: pl.DataFrame,
    test: pl.DataFrame,
    answers: Answers,
    proposal: Proposal,
) -> str:
    """The key of a joined table, or a wide row's id; else none."""
    if answers.group:
        return "" if answers.group == "none" else answers.group
    keys = [spec.raw_id] if spec.wide else list(joined[TRAIN].values())
    repeated = [
        name
        for name in test.columns
        if name in train.columns and name not in (spec.id, *TOKENS) and 1 < train[name].n_unique() < train.height / 2
    ]
    proposal.assumed["group"] = (
        f"rows of one {keys[0]} stay together; --group none says otherwise"
        if keys
        else f"no group; --group COLUMN keeps its rows together ({', '.join(repeated) or 'no column repeats'})"
    )
    return keys[0] if keys else ""


def find_documents(files: Files, proposal: Proposal) -> dict[str, Table]:
    """The table of documents, whose ids are the targets; that of the labels in words for RankedLabels."""
    if proposal.form == "RankedLabels":
        proposal.documents = "labels"
        return {proposal.documents: LABELS}
    if not proposal.document_file:
        return {}
    file, column = proposal.document_file
    texts = [name for name in files.others[file].columns if name != column and is_words(files.others[file][name])]
    proposal.documents = stem(file)
    return {proposal.documents: Table(column, tuple(texts))}


def propose_tokens(files: Files, proposal: Proposal) -> None:
    """A submission of labelled tokens, with the types of train's labels."""
    proposal.form = "TokenSpans"
    labels = files.train["labels"].explode().drop_nulls().unique().to_list()
    proposal.types = tuple(sorted({label.partition("-")[2] for label in labels if "-" in label}))
