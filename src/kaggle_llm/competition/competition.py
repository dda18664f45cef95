"""The base class of competitions: their tables and submissions, read and checked.

A folder is laid out as Kaggle mounts it: train, test, sample_submission and more, as CSV, Parquet, JSON or JSON lines.
A competition's columns, metric and submission format are defined in `competition/<name>.py`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kaggle_llm.base import paths
from kaggle_llm.base.folders import list_competitions
from kaggle_llm.competition.csv_table import NULL_WORDS
from kaggle_llm.competition.data_files import as_text, encode_file, find_file, read_file, strip_zeros
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.staged import StagedTest, match_columns
from kaggle_llm.competition.table import Table, check_filled, check_id_column, fill_texts, select_columns, shape_rows

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

SPARE_SECONDS = 600.0  # as in boot.py, which cannot import this: Kaggle's limit counts from before the notebook starts
TRAIN, TEST, SAMPLE = "train", "test", "sample_submission"


@dataclass
class CompetitionSettings:
    name: str
    """Kaggle's name of the competition; its module is competition/<name with underscores>.py."""
    dir: str = ""
    """Folder with its files; empty: input/<name>."""
    hidden_rows: int | None = None
    """Rows of the hidden test according to the competition's page; `submit` extrapolates the time to them."""
    hours: float = 9.0
    """Time limit of a notebook by the competition's rules: of the bundle's notebook, rehearsals, doctor and submit."""
    accelerators: list[str] = field(default_factory=list)
    """The accelerators that the competition gives its notebooks, of those that engine.accelerator names; []: all."""

    def __post_init__(self) -> None:
        if not notebook_seconds(self.hours) > 0:
            spare = f"{SPARE_SECONDS / 60:.0f} minutes"
            raise ValueError(f"competition.hours = {self.hours}: {spare} of it are kept free; usually it is 9")


def read_hours(config: Mapping[str, Any]) -> float:
    """competition.hours of a recorded config; the default where it has none."""
    return float(config.get("competition", {}).get("hours", CompetitionSettings.hours))


def notebook_seconds(hours: float) -> float:
    """Seconds of the notebook's prediction under a limit in hours."""
    return max(hours * 3600 - SPARE_SECONDS, 0.0)


class Competition:
    """Base of every competition: subclass it in competition/<name>.py.

    Reads the files on every call, because Kaggle swaps the test set. In every table the id column is named `id`.
    """

    tables: ClassVar[Mapping[str, Table]]
    """"train", "test" and every other table but the sample submission."""
    documents: ClassVar[str] = ""
    """The table of documents, whose ids are the legal items; empty: items are labels or texts."""
    labels: ClassVar[Collection[str]] = ()
    """The legal items where there are no documents; empty: any text."""
    nothing: ClassVar[str] = ""
    """The submission's cell of a row without items; empty: every row needs one."""
    new_targets: ClassVar[float] = 0.0
    """Share of the targets that folds keep out of their training, where a hidden test has targets that train.csv lacks;
    0: the targets are classes, and every fold trains on all of them."""
    every_label: ClassVar[bool] = False
    """Whether an answer scores every label, as probabilities do."""
    metric: Metric
    also: Sequence[Metric] = ()

    def __init__(self, settings: CompetitionSettings, folder: Path | None = None) -> None:
        self.settings = settings
        self.folder = folder or paths.absolute(settings.dir or f"input/{settings.name}")
        self._files: dict[str, Path] = {}
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"competition folder {self.folder} does not exist: run `kaggle-llm fetch {settings.name}` "
                f"(`make data` for the demo) or set competition.dir"
            )

    # what a competition defines -----------------------------------------------------------------------------

    def read(self, name: str) -> pl.DataFrame:
        """The table's rows as its file has them, all columns String but lists, shaped as its Table says.

        Override it to add or fill columns.
        """
        return shape_rows(self.raw(name), self.tables[name], lambda file: read_file(find_file(self.folder, file)))

    def cell(self, items: Sequence[str]) -> str:
        """The submission's cell for a ranked row."""
        raise NotImplementedError(f"{type(self).__name__}.cell: write how a ranked row becomes a submission's cell")

    def items_in(self, cell: str) -> list[str]:
        """The items of a submission's cell: the inverse of `cell`."""
        raise NotImplementedError(f"{type(self).__name__}.items_in: write which items a submission's cell holds")

    def legal_items(self) -> Sequence[str] | None:
        """The items that a ranking may hold; None: any text. By default `labels`, or the documents' ids."""
        return list(self.labels) or (self.table(self.documents)["id"].to_list() if self.documents else None)

    def cells(self, items: Sequence[str], scores: Sequence[float]) -> list[str]:
        """The submission's cells for a ranked row, in the sample's order. Override it for more than one column."""
        return [self.cell(items)]

    def answer_in(self, cells: Sequence[str]) -> tuple[list[str], list[float]]:
        """Items and scores of a submission's row: the inverse of `cells`. By default an item's score is −rank, from 0.

        Raises ValueError for cells that cannot be read.
        """
        (cell,) = cells
        items = self.items_in(cell)
        return items, [-float(rank) for rank in range(len(items))]

    # what follows from that ---------------------------------------------------------------------------------

    def table(self, name: str) -> pl.DataFrame:
        """One of `tables`, checked: no column missing, ids unique and not null, texts not null, targets legal.

        Columns: id, texts, and the others of its `Table`, in this order. An empty text is an error in a labelled
        table; in others, such as the test set and documents without a title, it becomes "" with a message.
        """
        if name not in self.tables:
            raise KeyError(f"no table {name!r} in {self.settings.name}: there are {', '.join(self.tables)}")
        spec, rows, file = self.tables[name], self.read(name), self.file_name(name)
        frame = select_columns(rows, spec, file)
        check_id_column(frame, file)
        if name == TEST:
            return fill_texts(frame, spec.texts, file)
        if not spec.targets():
            frame = fill_texts(frame, spec.texts, file)
        check_filled(frame, file)
        if spec.target:
            self._check_targets(frame, spec.target, file)
        return frame

    def file(self, name: str) -> Path:
        """The file of a table; raises FileNotFoundError where there is none."""
        return self._files.get(name) or find_file(self.folder, self.tables[name].file or name)

    def file_name(self, name: str) -> str:
        """The name of a table's file; <table>.csv of a table that read() makes without one."""
        try:
            return self.file(name).name
        except FileNotFoundError:
            return f"{name}.csv"

    def raw(self, name: str) -> pl.DataFrame:
        """A table's file as it is: `data_files.read_file`."""
        return read_file(self.file(name))

    def ids_in_file(self, name: str) -> set[str]:
        """The ids that a table's file has; none where read() makes the id, or the file."""
        try:
            return set(self.tables[name].read_ids(self.raw(name)).drop_nulls())
        except FileNotFoundError:
            return set()

    def labelled(self, path: Path) -> pl.DataFrame:
        """The rows of another file that is laid out as the training table's, such as a hidden test's solution.

        As read() gives them, the id column named `id`.
        """
        other = copy.copy(self)
        other._files = {**self._files, TRAIN: path}
        spec = self.tables[TRAIN]
        rows = other.read(TRAIN)
        if spec.id not in rows.columns:
            raise ValueError(f"{path}: missing column {spec.id!r}; the file has {other.raw(TRAIN).columns}")
        return rows.rename({spec.id: "id"})

    def check(self) -> None:
        """Read and check every table and the sample submission, before a training.

        Raises ValueError also for a table without rows; only prediction accepts an empty test set.
        """
        for name in self.tables:
            if self.table(name).height == 0:
                raise ValueError(f"{self.file_name(name)} in {self.folder} has no rows")
        self.sample()

    def sample(self) -> pl.DataFrame:
        """The sample submission, all text: an id and the cells."""
        sample = as_text(read_file(find_file(self.folder, SAMPLE)))
        sample = sample.with_columns(strip_zeros(sample.to_series(0)))
        expected = self.cell_columns()
        if sample.width < 2 or sample.columns[1:] != (expected or sample.columns[1:2]):
            raise ValueError(
                f"{SAMPLE}.csv has the columns {sample.columns}; after the id {expected or 'one cell'} is expected: "
                f"override cell_columns(), cells() and answer_in()"
            )
        return sample

    def cell_columns(self) -> list[str] | None:
        """Names of the sample's columns after the id; None: one column of any name."""
        return None

    def sample_of(self, ids: Sequence[str]) -> pl.DataFrame:
        """A sample submission for other ids, with the cells of the sample's first row."""
        import polars as pl

        id_column, *columns = (sample := self.sample()).columns
        cells = {column: pl.lit(sample[column].first() if sample.height else "") for column in columns}
        return pl.DataFrame({id_column: list(ids)}, schema={id_column: pl.String()}).with_columns(**cells)

    @property
    def target(self) -> str:
        return self.tables[TRAIN].target

    @property
    def group(self) -> str:
        """The training table's column whose values folds can keep whole: its group, or new targets; "": none."""
        return self.tables[TRAIN].group or (self.target if self.new_targets else "")

    @property
    def unseen(self) -> float:
        """The share of the groups that folds keep whole, unless folds.unseen is set."""
        return 1.0 if self.tables[TRAIN].group else self.new_targets

    def unlabelled(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Labelled rows with the columns of the test set: prediction never sees a target."""
        return rows.select("id", *self.tables[TEST].texts)

    def as_test(self, ids: Sequence[str]) -> StagedTest:
        """Training rows laid out as the files of the test set, for rehearsals.

        Override it where read() makes ids that the file does not have.
        """
        train, test = self.tables[TRAIN], self.tables[TEST]
        raw = self.raw(TRAIN)
        if train.raw_id not in raw.columns:
            raise ValueError(f"{self.file_name(TRAIN)} has no column {train.raw_id!r}: override as_test()")
        rows = raw.filter(train.read_ids(raw).is_in(train.raw_ids(ids))).rename({train.raw_id: test.raw_id})
        others = {}
        for file, key in test.joined.items():
            if file not in train.joined:
                others[file] = encode_file(self._joined_rows(key, rows[key], file), file)
        return StagedTest(self.file(TEST).name, match_columns(rows, self.raw(TEST)), others)

    def _joined_rows(self, key: str, values: pl.Series, file: str) -> pl.DataFrame:
        """The rows of the training set's joined file with these keys, laid out as the test set's one."""
        sources = [name for name, column in self.tables[TRAIN].joined.items() if column == key]
        if not sources:
            raise ValueError(f"the training table joins no file by {key!r}, from which rows of {file} could be taken")
        rows = read_file(find_file(self.folder, sources[0]))
        return match_columns(
            rows.filter(rows[key].is_in(values.unique().to_list())), read_file(find_file(self.folder, file))
        )

    def replace_texts(self, row: Mapping[str, Any], texts: Mapping[str, str | None]) -> dict[str, Any]:
        """A row of the test set's file with other texts; override it where other columns follow from the texts."""
        return {**row, **texts}

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Labelled rows → the truth for a metric: columns id, items (the right ones)."""
        import polars as pl

        return rows.select("id", pl.concat_list(self.target).alias("items"))

    def submission(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """A ranking of the test rows → submission.csv's rows, in the sample's columns.

        Raises ValueError for a row without items, unless `nothing` is set: Kaggle refuses empty cells.
        """
        import polars as pl

        empty = ranking.filter(pl.col("items").list.len() == 0)["id"].to_list()
        if empty and not self.nothing:
            raise ValueError(
                f"{len(empty)} row(s) have no items, first {empty[:3]}: let `fallback` in predict.py answer them"
            )
        return self._as_submission(ranking)

    def _as_submission(self, answer: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        rows = zip(answer["id"].to_list(), self.cells_of(answer), strict=True)
        schema = dict.fromkeys(self.sample().columns, pl.String())
        return pl.DataFrame([(i, *cells) for i, cells in rows], schema=schema, orient="row")

    def cells_of(self, answer: pl.DataFrame) -> list[list[str]]:
        """The submission's cells of every row of a RANKING or VALUES."""
        return [self.cells(*row) for row in answer.select("items", "scores").iter_rows()]

    def ranking_of(self, submission: pl.DataFrame) -> pl.DataFrame:
        """A submission → RANKING, to score what was really submitted."""
        rows = [(i, *self.answer_in([cell or "" for cell in cells])) for i, *cells in submission.iter_rows()]
        return make_ranking([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """The problems of a submission.csv, compared with the sample submission; [] where there are none."""
        sample = self.sample()
        if submission.columns != sample.columns:
            return [f"columns {submission.columns}, the sample has {sample.columns}"]
        id_column = sample.columns[0]
        problems = compare_ids(submission[id_column].to_list(), sample[id_column].to_list())
        items = self.legal_items()
        legal = None if items is None else set(items)
        if not submission.height and (asked := self.table(TEST).height):
            problems.append(f"no row, though the test set has {asked}")
        for row, *cells in submission.iter_rows():
            written = [cell or "" for cell in cells]
            fault = self._find_fault(written, legal) or self._find_null(written, legal)
            problems += [f"row {row}: {fault}"] if fault else []
        return problems

    def describe_empty(self, submission: pl.DataFrame) -> str:
        """How many rows hold `nothing`; "" where there are none."""
        empty = sum(cells == [self.nothing] for _, *cells in submission.iter_rows()) if self.nothing else 0
        if not empty:
            return ""
        return f"{empty} of {submission.height} rows ({empty / submission.height:.0%}) are {self.nothing!r}"

    def _find_null(self, cells: Sequence[str], legal: Collection[str] | None) -> str:
        """The problem of a cell that pandas, and so Kaggle's scorers, reads as empty."""
        meant = {self.nothing, *(legal or ())}
        words = [cell for cell in cells if cell in NULL_WORDS and cell not in meant]
        return f"{words[0]!r} is an empty cell to pandas, and so to Kaggle: write another text" if words else ""

    def _find_fault(self, cells: Sequence[str], legal: Collection[str] | None) -> str:
        """The problem of a row's cells; "" where there is none."""
        try:
            items, _ = self.answer_in(cells)
        except ValueError as error:
            return str(error)
        unknown = [item for item in items if legal is not None and item not in legal]
        if not items and not (self.nothing and list(cells) == [self.nothing]):
            return "empty label"
        if unknown:
            return f"unknown label {unknown[0]!r}"
        return "a label occurs twice" if len(set(items)) < len(items) else ""

    def groups(self, train: pl.DataFrame, valid: pl.DataFrame) -> pl.Series:
        """[rows] the groups that are scored apart: "seen" where training has rows of the same group, else "unseen".

        "all" where there are no groups.
        """
        import polars as pl

        if not self.group:
            return pl.Series("group", ["all"] * valid.height, dtype=pl.String())
        seen = valid[self.group].is_in(train[self.group].unique().to_list())
        return seen.replace_strict({True: "seen", False: "unseen"}, return_dtype=pl.String()).alias("group")

    def _check_targets(self, frame: pl.DataFrame, target: str, file: str) -> None:
        legal = self.legal_items()
        wrong = frame.clear() if legal is None else frame.filter(~frame[target].is_in(legal))
        if legal is not None and wrong.height:
            source = self.file_name(self.documents) if self.documents else str(list(legal))
            raise ValueError(
                f"{file}: {wrong.height} row(s) whose {target} is not among the {len(legal)} of {source}, "
                f"first {wrong['id'][0]!r} with {wrong[target][0]!r}"
            )


def load_competition(settings: CompetitionSettings, folder: Path | None = None) -> Competition:
    """The Competition of `settings.name`, reading from `folder` (default: the settings' folder)."""
    module_name, names = settings.name.replace("-", "_"), list_competitions()
    if settings.name not in names:
        raise ValueError(
            f"competition.name = {settings.name!r}: run `kaggle-llm init {settings.name}`, or write "
            f"src/kaggle_llm/competition/{module_name}.py (there are: {', '.join(names)})"
        )
    module = importlib.import_module(f"kaggle_llm.competition.{module_name}")
    competition: Competition = module.COMPETITION(settings, folder)
    return competition


def compare_ids(got: list[str], asked: list[str]) -> list[str]:
    """The problems of a submission's ids, compared with the sample's."""
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
