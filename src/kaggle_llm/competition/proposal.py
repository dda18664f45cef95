"""What the files of a competition look like: a proposal of its form, tables and metric, for `kaggle-llm init`.

`experiment/first.py` writes the module and an experiment of it. Whatever is assumed, because the files do not say it,
stands in `Proposal.assumed` and later as a comment in the module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.competition.competition import TEST, TRAIN
from kaggle_llm.competition.data_files import strip_zeros
from kaggle_llm.competition.inspect_files import (
    Files,
    find_document_file,
    find_id,
    find_joined,
    find_wide,
    holds_lists,
    is_identifier,
    is_part,
    is_words,
    read_files,
    shape,
)
from kaggle_llm.competition.span_forms import TOKENS
from kaggle_llm.competition.table import Table

if TYPE_CHECKING:
    import polars as pl

LABELS_AT_MOST = 60  # different targets that are classes; more are texts or numbers
LABEL_CHARACTERS = 40  # a longer target is a text
METRICS = {  # --metric → the function of competition/metrics.py and its arguments
    "accuracy": "accuracy()",
    "auc": 'roc_auc("{positive}")',
    "bleu": "bleu()",
    "chrf": "chrf()",
    "exact_match": "exact_match()",
    "f": "f_beta({k}, {labels})",
    "log_loss": "log_loss({labels})",
    "map": "mean_average_precision({k})",
    "mcc": "matthews_correlation()",
    "mcrmse": "root_mean_squared_error()",
    "mrr": "mean_reciprocal_rank()",
    "ndcg": "ndcg({k})",
    "pearson": "pearson()",
    "precision": "precision({k})",
    "qwk": "quadratic_weighted_kappa({labels})",
    "recall": "recall({k})",
    "rmse": "root_mean_squared_error()",
    "rouge1": 'rouge("rouge1")',
    "rouge2": 'rouge("rouge2")',
    "rougeL": 'rouge("rougeL")',
    "span_f": "span_f_beta({k})",
    "spearman": "spearman()",
    "token_f": "token_f_beta({k})",
}


@dataclass(frozen=True)
class Answers:
    """What the files cannot say; empty: it is assumed."""

    metric: str = ""
    """A key of METRICS, with its number behind it: map@25, f5."""
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
    empty_texts: bool = False
    """Whether train has rows with an empty text."""
    groups: int = 0
    """Number of groups; 0: there are none."""
    answers: tuple[str, ...] = ()
    """Columns of answers of which one is chosen."""
    types: tuple[str, ...] = ()
    """Of spans."""
    assumed: dict[str, str] = field(default_factory=dict)
    """Attribute → what was assumed, and how it is said otherwise."""

    @property
    def texts(self) -> tuple[str, ...]:
        return self.tables[TEST].texts


def propose(folder: Path, name: str, answers: Answers) -> Proposal:
    """A proposal for a competition's folder; raises ValueError where its files cannot be understood."""
    files, proposal = read_files(folder), Proposal(name)
    spec = Table(find_id(files), (), wide=find_wide(files))
    joined = find_joined(files)
    train, test = (shape(files, part, spec, joined) for part in (TRAIN, TEST))
    if set(TOKENS) <= set(test.columns):
        spec = replace(spec, target="spans", kept=TOKENS)
        propose_tokens(files, proposal)
    else:
        spec = propose_target(files, train, test, spec, answers, proposal)
    texts = answers.texts or find_texts(files, train, test, spec, proposal)
    find_answers(texts, proposal)
    spec = replace(
        spec,
        texts=tuple(texts),
        group=find_group(spec, joined, train, test, answers, proposal),
        lists=tuple(text for text in texts if holds_lists(test, text)),
    )
    unlabelled = replace(spec, target="", group="", numbers=())
    for part, table, file in ((TRAIN, spec, files.train_file), (TEST, unlabelled, files.test_file)):
        own = "" if file.partition(".")[0] == part else file
        proposal.tables[part] = replace(table, file=own, joined=joined[part])
    proposal.tables |= find_documents(files, proposal)
    proposal.groups = train[spec.group].n_unique() if spec.group else 0
    proposal.empty_texts = any(train[text].null_count() for text in texts)
    proposal.metric = write_metric(proposal, answers.metric)
    return proposal


def propose_target(
    files: Files, train: pl.DataFrame, test: pl.DataFrame, spec: Table, answers: Answers, proposal: Proposal
) -> Table:
    """Sets the form; returns the table with its target."""
    targets = [answers.target] if answers.target else find_targets(files, train, test, spec, proposal)
    find_form(files, train, targets, proposal)
    if proposal.form == "NumberColumns":
        return replace(spec, numbers=tuple(targets))
    if proposal.form == "LabelColumns":
        return replace(spec, target="label", numbers=tuple(targets))
    return replace(spec, target=targets[0])


def find_targets(files: Files, train: pl.DataFrame, test: pl.DataFrame, spec: Table, proposal: Proposal) -> list[str]:
    """The columns behind the id of the sample submission, else the first one that test lacks."""
    cells = [name for name in files.sample.columns if name != spec.id]
    lacking = [name for name in train.columns if name not in test.columns]
    if set(cells) <= set(lacking):
        return cells
    if set(parts := cells[0].split(":")) <= set(lacking):
        proposal.glued = tuple(parts)
        return cells
    if not lacking:
        raise ValueError(f"{files.train_file} has no column that {files.test_file} lacks: there is nothing to predict")
    proposal.assumed["target"] = f"one of {', '.join(lacking)}; say another with --target"
    return lacking[:1]


def find_form(files: Files, train: pl.DataFrame, targets: list[str], proposal: Proposal) -> None:
    """Sets form, labels and cut."""
    import polars as pl

    if len(targets) > 1:
        sums = train.select(pl.sum_horizontal(pl.col(targets).cast(pl.Float64, strict=False))).to_series()
        is_shares = bool(((sums - 1).abs() < 1e-3).all())
        proposal.form = "LabelColumns" if is_shares else "NumberColumns"
        proposal.labels = {shorten(name, targets): name for name in targets} if is_shares else ()
        return
    cell = str(files.sample[:, 1].first() or "")
    values = glue(train, proposal.glued) if proposal.glued else strip_zeros(train[targets[0]])
    distinct = values.drop_nulls().unique().sort()
    numbers = distinct.cast(pl.Float64, strict=False)
    numeric, few = not numbers.null_count(), distinct.len() <= LABELS_AT_MOST
    items = cell.split()
    proposal.document_file = find_document_file(files, distinct)
    if proposal.document_file:
        proposal.form, proposal.cut = "RankedItems", max(len(items), 1)
    elif len(items) > 1 and set(items) <= set(distinct):
        is_options = set(distinct) <= set(files.test.columns)
        proposal.form, proposal.cut = "RankedItems" if is_options else "RankedLabels", len(items)
        proposal.labels = tuple(distinct) if is_options else ()
        proposal.answers = proposal.labels if is_options else ()
    elif numeric and distinct.len() == 2 and cell not in distinct:
        proposal.form, proposal.labels = "OneProbability", tuple(distinct)
    elif numeric and few and (numbers == numbers.round()).all():
        proposal.form, proposal.labels = "OneLabel", tuple(sorted(distinct, key=float))
    elif numeric:
        proposal.form = "NumberColumns"
    elif few and (distinct.str.len_chars() <= LABEL_CHARACTERS).all():
        proposal.form, proposal.labels = "OneLabel", tuple(distinct)
    else:
        proposal.form = "Texts"


def glue(train: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Columns as one, with a colon between; an empty cell is NA, as pandas writes it."""
    import polars as pl

    return train.select(pl.concat_str(pl.col(list(columns)).fill_null("NA"), separator=":")).to_series()


def shorten(name: str, names: Sequence[str]) -> str:
    """A column's name without the words that all of them begin with: winner_tie → tie."""
    words = [other.split("_") for other in names]
    common = next(n for n in range(len(words[0])) if len({tuple(word[: n + 1]) for word in words}) > 1)
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
        raise ValueError(f"{files.test_file} has {test.columns}: no column of words; say them with --text")
    proposal.assumed["texts"] = "all columns of words; say others with --text"
    return texts


def find_answers(texts: Sequence[str], proposal: Proposal) -> None:
    """Columns of two or more answers that the labels choose between: response_a for the label model_a."""
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
        return {"labels": Table("label", ("text",))}
    if not proposal.document_file:
        return {}
    file, column = proposal.document_file
    texts = [name for name in files.others[file].columns if name != column and is_words(files.others[file][name])]
    proposal.documents = file.partition(".")[0]
    return {proposal.documents: Table(column, tuple(texts))}


def propose_tokens(files: Files, proposal: Proposal) -> None:
    """A submission of labelled tokens, with the types of train's labels."""
    proposal.form = "TokenSpans"
    labels = files.train["labels"].explode().drop_nulls().unique().to_list()
    proposal.types = tuple(sorted({label.partition("-")[2] for label in labels if "-" in label}))


def write_metric(proposal: Proposal, asked: str) -> str:
    """The metric as Python; raises ValueError for one that METRICS lacks."""
    usual = {
        "LabelColumns": "log_loss",
        "NumberColumns": "rmse",
        "OneLabel": "accuracy",
        "OneProbability": "auc",
        "RankedItems": f"map@{proposal.cut}",
        "RankedLabels": f"map@{proposal.cut}",
        "Texts": "rougeL",
        "TokenSpans": "token_f1",
    }
    if not asked:
        proposal.assumed["metric"] = "the usual one of this form; say another with --metric"
    match = re.fullmatch(r"([A-Za-z_]+?)@?(\d*)", asked or usual[proposal.form])
    name, k = match.groups() if match else (asked, "")
    known = {key: key for key in METRICS} | {"rougel": "rougeL", "rouge": "rougeL"}
    whole = known.get(f"{name}{k}") or known.get(name.removesuffix("_l") + "L" if name.endswith("_l") else name)
    if whole is None:
        known_names = ", ".join(METRICS)
        raise ValueError(f"--metric {asked}: known are {known_names}; another is a function (docs/competition.md)")
    labels = "tuple(labels)" if isinstance(proposal.labels, dict) else "labels"
    positive = [*proposal.labels, "1"][min(len(proposal.labels), 2) - 1]
    return METRICS[whole].format(k=k or proposal.cut or 1, labels=labels, positive=positive)
