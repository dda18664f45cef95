"""Draw a number of rows of a test set, for rehearsals and timed runs on Kaggle."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import TEST, Competition
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.weights.ship import describe_cv

if TYPE_CHECKING:
    import polars as pl

WHOLE_NUMBER = re.compile(r"0|[1-9]\d*")


def read_held_out(run: str) -> tuple[pl.DataFrame, str]:
    """The out-of-fold rows that the run's shipped models were not trained on, and "".

    Where they were trained on every row: the rows of all folds, and the reason.
    """
    import polars as pl

    oof = pl.read_parquet(paths.run_folder(run) / "oof.parquet")
    if note := describe_cv(records.read_complete(run).settings["config"]):
        return oof, note
    return oof.filter(pl.col("fold") == oof["fold"].min()), ""


def draw_test(
    competition: Competition, test: StagedTest, labelled: Sequence[str], rows: int
) -> tuple[StagedTest, pl.DataFrame]:
    """The test set with `rows` rows of its file, drawn by `draw_rows`, and a frame of ids: columns id (new) and old.

    labelled: ids that the test set has. Raises ValueError where read() makes ids that the file does not have.
    """
    import polars as pl

    table = competition.tables[TEST]
    ids = table.read_ids(test.rows)
    if table.raw_id not in test.rows.columns or not set(table.raw_ids(labelled)) <= set(ids):
        raise ValueError(f"--rows: read() reshapes {test.file}, so its rows cannot be drawn; leave --rows out")
    drawn, names = draw_rows(test.rows.with_columns(ids.alias(table.raw_id)), table.raw_id, rows)
    typed = drawn.with_columns(drawn[table.raw_id].cast(test.rows.schema[table.raw_id]))
    pairs = [
        pair for new, old in names.iter_rows() for pair in zip(table.row_ids(new), table.row_ids(old), strict=True)
    ]
    schema = {"id": pl.String(), "old": pl.String()}
    return test.with_rows(typed), pl.DataFrame(pairs, schema=schema, orient="row")


def draw_rows(test: pl.DataFrame, id_column: str, rows: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`rows` rows of a test set, drawn with a fixed seed, and a frame of their ids: columns id (new) and old.

    Where more rows are asked for than there are, rows are repeated under new ids: the next whole numbers, where all
    ids are whole numbers.
    """
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    times = -(-rows // max(test.height, 1))
    order = np.concatenate([np.empty(0, int), *(rng.permutation(test.height) for _ in range(times))])[:rows]
    drawn = test[order.tolist()]
    old = drawn[id_column].to_list()
    first = old[: test.height]
    repeated = [f"{i}-{n // test.height}" for n, i in enumerate(old) if n >= test.height]
    if first and all(map(WHOLE_NUMBER.fullmatch, first)):
        repeated = make_ids(first, first, len(repeated))
    new = pl.Series(id_column, [*first, *repeated], dtype=pl.String())
    return drawn.with_columns(new), pl.DataFrame({"id": new, "old": pl.Series(old, dtype=pl.String())})


def make_ids(alike: Collection[str], known: Collection[str], count: int) -> list[str]:
    """Ids that `known` lacks: the next whole numbers where all of `alike` are whole numbers, else ids such as "007".

    Code may read whole numbers as integers; "007" would then be the row with the id 7.
    """
    if alike and all(map(WHOLE_NUMBER.fullmatch, alike)):
        start = max(int(i) for i in (*alike, *known) if WHOLE_NUMBER.fullmatch(i)) + 1
        return [str(start + n) for n in range(count)]
    return list(itertools.islice((i for n in itertools.count() if (i := f"00{n}") not in known), count))


def rename_rows(frame: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """The rows of a frame with a column id under their new ids, in the order of `names` (columns id and old).

    Rows that the frame lacks are left out.
    """
    return names.join(frame.rename({"id": "old"}), on="old", how="inner", maintain_order="left").drop("old")
