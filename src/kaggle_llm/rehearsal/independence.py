"""Is a row's prediction the same alone, in another order and among other rows? Run inside the sandbox, by the bundle.

python -m kaggle_llm.rehearsal.independence <arguments of kaggle_llm.kaggle.predict>

Reads working/ranking.parquet, which the notebook wrote; exit code 1 where a row differs.
"""

from __future__ import annotations

import sys

from kaggle_llm.competition.competition import TEST
from kaggle_llm.inference.run import answer
from kaggle_llm.kaggle.predict import open_run, parse_mounts
from kaggle_llm.rehearsal.checks import compare_rankings

ROWS_CHECKED = 4  # in another order; the first one also alone


def main() -> int:
    import polars as pl

    mounts = parse_mounts()
    run = open_run(mounts)
    together = pl.read_parquet(mounts.working / "ranking.parquet")
    rows = run.competition.table(TEST).head(ROWS_CHECKED)
    problems = []
    for name, part in (("alone", rows.head(1)), ("in another order", rows.reverse())):
        expected = together.filter(pl.col("id").is_in(part["id"].to_list()))
        ranking = answer(mounts.exp, run, part)
        problems += [f"{name}: {problem}" for problem in compare_rankings(ranking, expected)]
    print("\n".join(problems) or f"{rows.height} rows: the same alone, in another order and among all rows")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
