"""BM25 with the words of `base/words.py` against bm25s's own, which are of two characters and more: MAP@25.

    python tests/benchmarks/lexical.py --json tests/benchmarks/lexical.json

On the demo's questions, and where they are there (tests/README.md) on classroom errors and on titles and abstracts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from machine import describe_machine
from misconceptions import convert
from sources import ROOT, find_source

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.metrics import mean_average_precision, paired_difference
from kaggle_llm.retrieval.lexical import LexicalIndex

METRIC = mean_average_precision(25)


class PlainIndex(LexicalIndex):
    """As bm25s's README does it."""

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
        return words


CONTENDERS = {"bm25s": PlainIndex, "kaggle_llm": LexicalIndex}


@dataclass(frozen=True)
class Searches:
    """Queries with one right document each."""

    name: str
    documents: dict[str, str]
    queries: list[str]
    right: list[str]


def list_searches() -> Iterator[Searches]:
    yield from read_misconceptions("demo", ROOT / "input" / "demo-misconceptions")
    if (source := find_source("math_misconceptions")).is_dir():
        with tempfile.TemporaryDirectory() as folder:
            convert(source, Path(folder) / "errors")
            yield from read_misconceptions("classroom errors", Path(folder) / "errors")
    if (source := find_source("scitldr") / "dev.jsonl").is_file():
        papers = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        papers = [paper for paper in papers if paper["title"]]
        documents = {str(number): " ".join(paper["source"]) for number, paper in enumerate(papers)}
        yield Searches("scitldr, title", documents, [paper["title"] for paper in papers], list(documents))


def read_misconceptions(name: str, folder: Path) -> Iterator[Searches]:
    rows, texts = (pl.read_csv(folder / f"{file}.csv", infer_schema=False) for file in ("train", "misconceptions"))
    documents = dict(texts.select("misconception_id", "text").iter_rows())
    for kind, columns in (("whole", ["question", "correct_answer", "wrong_answer"]), ("answer", ["wrong_answer"])):
        queries = rows.select(pl.concat_str(columns, separator=" ", ignore_nulls=True)).to_series().to_list()
        yield Searches(f"{name}, {kind}", documents, queries, rows["misconception_id"].to_list())


def run_benchmark() -> dict[str, Any]:
    figures: dict[str, dict[str, float]] = {name: {"search_seconds": 0.0} for name in CONTENDERS}
    differences = {}
    for searches in list_searches():
        ids = [str(number) for number in range(len(searches.queries))]
        truth = pl.DataFrame({"id": ids, "items": [[item] for item in searches.right]})
        rankings = {}
        for name, kind in CONTENDERS.items():
            index = kind(list(searches.documents), list(searches.documents.values()))
            start = time.perf_counter()
            rankings[name] = index.search(ids, searches.queries, 100)
            figures[name]["search_seconds"] += time.perf_counter() - start
            figures[name][searches.name] = METRIC.score(rankings[name], truth)
        differences[searches.name] = paired_difference(METRIC, rankings["kaggle_llm"], rankings["bm25s"], truth)
    return {
        "benchmark": "lexical",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "contenders": [{"name": name, "figures": values} for name, values in figures.items()],
        "differences": differences,
    }


def print_benchmark(report: dict[str, Any]) -> None:
    plain, ours = (contender["figures"] for contender in report["contenders"])
    rows = [
        [name, f"{plain[name]:.4f}", f"{ours[name]:.4f}", f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"]
        for name, (difference, low, high) in report["differences"].items()
    ]
    print_table("MAP@25 of BM25", ("searches", *CONTENDERS, "difference, 95 % paired"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", required=True, help="where the figures go")
    arguments = parser.parse_args()
    report = run_benchmark()
    records.write_json(arguments.json, report)
    print_benchmark(report)


if __name__ == "__main__":
    main()
