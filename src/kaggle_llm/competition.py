"""Tables of a competition, checked; the submission's format, checked.

A folder is laid out as Kaggle mounts it: train.csv, test.csv, sample_submission.csv and more. One competition's
columns, metric and submission cell stand in `competitions/<name>.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kaggle_llm import paths

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.metrics import Metric

TRAIN, TEST, SAMPLE = "train", "test", "sample_submission"


@dataclass
class CompetitionSettings:
    name: str
    """Kaggle's name of the competition; its module is competitions/<name with underscores>.py."""
    dir: str = ""
    """Folder with the CSV files; empty: input/<name>."""
    hidden_rows: int | None = None
    """Rows of the hidden test, as the competition's page says: what `submit` extrapolates the time to."""


@dataclass(frozen=True)
class Table:
    """What a CSV must hold: an id, texts, and for labelled tables the target."""

    id: str
    texts: tuple[str, ...]
    target: str = ""

    def columns(self) -> list[str]:
        return [self.id, *self.texts, *([self.target] if self.target else [])]


class Competition:
    """Base of every competition: subclass it in competitions/<name>.py.

    Reads on every call and keeps no row count: on Kaggle the test set is swapped under its feet.
    In every table the id column is named `id`.
    """

    tables: ClassVar[Mapping[str, Table]]
    """Of "train", "test" and every other CSV but the sample submission."""
    documents: ClassVar[str]
    """The table whose ids are the legal items."""
    metric: Metric
    also: Sequence[Metric] = ()

    def __init__(self, settings: CompetitionSettings, folder: Path | None = None) -> None:
        self.settings = settings
        self.folder = folder or paths.absolute(settings.dir or f"input/{settings.name}")
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"competition folder {self.folder} does not exist: run `kaggle-llm fetch {settings.name}` "
                f"(`make data` for the demo) or set competition.dir"
            )

    # what a competition says about itself -------------------------------------------------------------------

    def read(self, name: str) -> pl.DataFrame:
        """The table as it lies on disk, all columns as text. Override it to reshape a wide table to one row an id."""
        return read_csv(self.folder / f"{name}.csv")

    def cell(self, items: Sequence[str]) -> str:
        """The submission's cell for a ranked row."""
        raise NotImplementedError(f"{type(self).__name__}.cell: say how a ranked row becomes a submission's cell")

    def items_in(self, cell: str) -> list[str]:
        """The items of a submission's cell: the inverse of `cell`."""
        raise NotImplementedError(f"{type(self).__name__}.items_in: say which items a submission's cell holds")

    # what follows from it -----------------------------------------------------------------------------------

    def table(self, name: str) -> pl.DataFrame:
        """One of `tables`, checked: columns there, ids present and unique, texts not null, targets legal.

        Columns: id, the texts, and the target if the table has one, in this order, all String.
        An empty text is an error where we learn from it, and "" with a message in the test set.
        """
        if name not in self.tables:
            raise KeyError(f"no table {name!r} in {self.settings.name}: there are {', '.join(self.tables)}")
        spec, raw = self.tables[name], self.read(name)
        frame = _select(raw, spec, f"{name}.csv")
        _check_ids(frame, f"{name}.csv")
        if name == TEST:
            return _fill_texts(frame, spec.texts)
        _check_filled(frame, f"{name}.csv")
        if spec.target:
            self._check_targets(frame, spec.target, f"{name}.csv")
        return frame

    def check(self) -> None:
        """Read and check every table and the sample submission: what training does first.

        Raises ValueError also for a table without rows; prediction alone accepts an empty test set.
        """
        for name in self.tables:
            if self.table(name).height == 0:
                raise ValueError(f"{name}.csv in {self.folder} has no rows")
        self.sample()

    def sample(self) -> pl.DataFrame:
        """sample_submission.csv: an id and a cell."""
        sample = read_csv(self.folder / f"{SAMPLE}.csv")
        if sample.width != 2:
            raise ValueError(
                f"{SAMPLE}.csv has the columns {sample.columns}: for other than an id and one cell, override "
                f"submission(), ranking_of() and check_submission()"
            )
        return sample

    @property
    def target(self) -> str:
        return self.tables[TRAIN].target

    def unlabelled(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Labelled rows as the test set would show them: prediction never sees a target."""
        return rows.select("id", *self.tables[TEST].texts)

    def test_csv(self, ids: Sequence[str]) -> pl.DataFrame:
        """Training rows laid out as test.csv, columns and all: for rehearsals. Override it where read() reshapes."""
        raw, columns = read_csv(self.folder / f"{TRAIN}.csv"), read_csv(self.folder / f"{TEST}.csv").columns
        return raw.filter(raw[self.tables[TRAIN].id].is_in(list(ids))).select(columns)

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Labelled rows → the right items of each, for a metric: columns id, items."""
        import polars as pl

        return rows.select("id", pl.concat_list(self.target).alias("items"))

    def submission(self, ranking: pl.DataFrame, fill: pl.DataFrame | None = None) -> pl.DataFrame:
        """A ranking of the test rows → submission.csv's rows, in the sample's columns.

        fill: a ranking for the rows that `ranking` gives no items (cut by the time budget, say).
        Raises ValueError where a row has no items in either: an empty cell is a scoring error.
        """
        import polars as pl

        sample = self.sample()
        spare = dict(fill.select("id", "items").iter_rows()) if fill is not None else {}
        rows = [
            (i, items if len(items) else spare.get(i, [])) for i, items in ranking.select("id", "items").iter_rows()
        ]
        empty = [i for i, items in rows if not len(items)]
        if empty:
            raise ValueError(f"{len(empty)} row(s) have no items, first {empty[:3]}: give `fill` a ranking for them")
        id_column, cell_column = sample.columns[:2]
        return pl.DataFrame(
            {id_column: [i for i, _ in rows], cell_column: [self.cell(items) for _, items in rows]},
            schema={id_column: pl.String(), cell_column: pl.String()},
        )

    def ranking_of(self, submission: pl.DataFrame) -> pl.DataFrame:
        """A submission → RANKING, scores are minus the place: to score what was really submitted."""
        from kaggle_llm.rankings import make_ranking

        items = [self.items_in(cell or "") for cell in submission[submission.columns[1]]]
        scores = [[-float(place) for place in range(len(row))] for row in items]
        return make_ranking(submission[submission.columns[0]].to_list(), items, scores)

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """What is wrong with a submission.csv against the sample submission; [] where it is right."""
        sample = self.sample()
        if submission.columns != sample.columns:
            return [f"columns {submission.columns}, the sample has {sample.columns}"]
        id_column, cell_column = sample.columns[:2]
        problems = _compare_ids(submission[id_column].to_list(), sample[id_column].to_list())
        legal = set(self.table(self.documents)["id"])
        for row_id, cell in submission.select(id_column, cell_column).iter_rows():
            items = self.items_in(cell or "")
            unknown = [item for item in items if item not in legal]
            if not items:
                problems.append(f"row {row_id}: empty label")
            elif unknown:
                problems.append(f"row {row_id}: unknown label {unknown[0]!r}")
            elif len(set(items)) < len(items):
                problems.append(f"row {row_id}: a label occurs twice")
        return problems

    def groups(self, train: pl.DataFrame, valid: pl.DataFrame) -> pl.Series:
        """The group of each validation row that is scored apart: was its target seen in training?"""
        import polars as pl

        seen = valid[self.target].is_in(train[self.target].unique().to_list())
        return seen.replace_strict({True: "seen", False: "unseen"}, return_dtype=pl.String()).alias("group")

    def _check_targets(self, frame: pl.DataFrame, target: str, where: str) -> None:
        legal = self.table(self.documents)["id"].to_list()
        wrong = frame.filter(~frame[target].is_in(legal))
        if wrong.height:
            raise ValueError(
                f"{where}: {wrong.height} row(s) whose {target} is not among the {len(legal)} of {self.documents}.csv, "
                f"first {wrong['id'][0]!r} with {wrong[target][0]!r}"
            )


def load_competition(settings: CompetitionSettings, folder: Path | None = None) -> Competition:
    """The Competition of `settings.name`, reading from `folder` (default: the settings' own)."""
    module_name = settings.name.replace("-", "_")
    known = sorted(path.stem for path in (Path(__file__).parent / "competitions").glob("[a-z]*.py"))
    if module_name not in known:
        raise ValueError(
            f"competition.name = {settings.name!r}: write src/kaggle_llm/competitions/{module_name}.py "
            f"(there are: {', '.join(name.replace('_', '-') for name in known)})"
        )
    module = importlib.import_module(f"kaggle_llm.competitions.{module_name}")
    competition: Competition = module.COMPETITION(settings, folder)
    return competition


def read_csv(path: Path) -> pl.DataFrame:
    """All columns as String; an empty field is null, quoted or not.

    Raises FileNotFoundError, and ValueError for bytes that are not UTF-8 (with the line) or a broken CSV.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}")
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}: line {line} has a byte 0x{content[error.start]:02x} that is not UTF-8: convert the file first"
        ) from error
    try:
        return pl.read_csv(content, infer_schema=False, null_values=[""])
    except (pl.exceptions.ComputeError, pl.exceptions.NoDataError) as error:
        raise ValueError(f"{path} is no CSV table: {error}") from error


def _select(raw: pl.DataFrame, spec: Table, where: str) -> pl.DataFrame:
    missing = [column for column in spec.columns() if column not in raw.columns]
    if missing:
        raise ValueError(f"{where}: missing column(s) {missing}; the file has {raw.columns}")
    return raw.select(spec.columns()).rename({spec.id: "id"})


def _check_ids(frame: pl.DataFrame, where: str) -> None:
    empty = frame["id"].null_count()
    if empty:
        raise ValueError(f"{where}: {empty} row(s) without an id")
    repeated = frame.filter(frame["id"].is_duplicated())["id"].unique(maintain_order=True)
    if repeated.len():
        raise ValueError(f"{where}: {repeated.len()} id(s) occur more than once, first {repeated.head(3).to_list()}")


def _check_filled(frame: pl.DataFrame, where: str) -> None:
    for column in frame.columns[1:]:
        rows = frame.filter(frame[column].is_null())["id"]
        if rows.len():
            raise ValueError(
                f"{where}: {column} is null in {rows.len()} row(s), first {rows.head(3).to_list()}: "
                f"fill or drop them in the competition's read()"
            )


def _fill_texts(frame: pl.DataFrame, texts: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    empty = {text: frame[text].null_count() for text in texts if frame[text].null_count()}
    if empty:
        print(f"test.csv: empty texts are read as '': {empty}", file=sys.stderr)
    return frame.with_columns(pl.col(list(texts)).fill_null(""))


def _compare_ids(got: list[str], asked: list[str]) -> list[str]:
    problems = []
    if len(got) != len(asked):
        problems.append(f"{len(got)} rows, the sample has {len(asked)}")
    if len(set(got)) < len(got):
        problems.append(f"{len(got) - len(set(got))} duplicate id(s)")
    got_set, asked_set = set(got), set(asked)
    lost, added = [i for i in asked if i not in got_set], [i for i in got if i not in asked_set]
    if lost:
        problems.append(f"{len(lost)} id(s) of the sample are missing, first {lost[:3]}")
    if added:
        problems.append(f"{len(added)} id(s) are not in the sample, first {added[:3]}")
    if not problems and got != asked:
        problems.append("the ids are in another order than the sample's")
    return problems
