"""Search in 5,000 real passages, 100,000 and 1,000,000 vectors, and 100,000 texts: seconds and memory.

    python tests/benchmarks/retrieval.py --json tests/benchmarks/retrieval.json

Contenders: plain (sentence-transformers and bm25s as in their READMEs), kaggle_llm, and for vectors Faiss where it is
installed (`make peers`): its exact flat index, and the approximate IVF and HNSW with the share of the 100 nearest that
they find. Each searches each collection in its own process, on one thread; the seconds are those of its processor,
which other work on the machine hardly changes. The passages are sentences of scitldr's abstracts, the queries summaries
(tests/README.md says where they are had); without them the 5,000 are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from machine import describe_machine
from sources import ROOT, find_source

Timed = tuple[Callable[[], Any], Callable[[Any], Any]]  # makes the index; searches in it
PEERS = ROOT / ".venv-peers" / "bin" / "python"
MODEL = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
K, SIZE = 100, 384
FAISS = {"faiss-flat": "Flat", "faiss-ivf": "IVF{lists},Flat", "faiss-hnsw": "HNSW32,Flat"}
PROBED_LISTS, SEARCHED_NEIGHBOURS, POINTS_A_LIST = 16, 128, 64  # of IVF, of HNSW; that IVF's centres are learned from
VECTORS = {"100k": 100_000, "1m": 1_000_000}
QUERIES = {"5k": 200, "100k": 1000, "1m": 200, "bm25_100k": 1000}
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


# the collections -------------------------------------------------------------------------------------------------


def write_collections(folder: Path, asked: Sequence[str], scale: float) -> list[str]:
    """Those of the collections that are there, once their files are in the folder. scale: of their sizes."""
    names = list(asked)
    papers = find_source("scitldr") / "train.jsonl"
    if "5k" in names and not (papers.is_file() and MODEL.is_dir()):
        print("the 5,000 passages are left out: scitldr or MiniLM is absent", flush=True)
        names.remove("5k")
    for name in names:
        if name in VECTORS:
            draw_vectors(folder, name, int(VECTORS[name] * scale))
        else:
            texts = read_passages(papers, scale) if name == "5k" else draw_texts(int(100_000 * scale), scale)
            write_texts(folder / f"{name}.json", *texts)
    return names


def write_texts(path: Path, documents: Sequence[str], queries: Sequence[str]) -> None:
    path.write_text(json.dumps({"documents": documents, "queries": queries}), encoding="utf-8")


def read_passages(papers: Path, scale: float) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in papers.read_text(encoding="utf-8").splitlines()]
    sentences = [sentence for row in rows for sentence in row["source"]]
    return sentences[: int(5000 * scale)], [row["target"][0] for row in rows][: int(QUERIES["5k"] * scale)]


def draw_vectors(folder: Path, name: str, count: int) -> None:
    """Random unit vectors around 1,000 centres, as a corpus of topics has them."""
    from kaggle_llm.inference.vectors import save_vectors

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, SIZE)).astype(np.float32)

    def draw(rows: int) -> np.ndarray:
        vectors = centres[rng.integers(0, 1000, rows)] + rng.standard_normal((rows, SIZE)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    np.save(folder / f"{name}-queries.npy", draw(QUERIES[name]))
    (folder / name).mkdir()
    save_vectors(folder / name, {"dtype": "float32"}, [[0]] * count, lambda part: draw(len(part)))


def draw_texts(count: int, scale: float) -> tuple[list[str], list[str]]:
    """Texts of 20 to 100 words, which are as frequent as Zipf's law has it; queries of 5 to 30."""
    rng = np.random.default_rng(0)

    def draw(rows: int, least: int, most: int) -> list[str]:
        return [" ".join(f"w{word}" for word in rng.zipf(1.3, rng.integers(least, most)) % 50_000) for _ in range(rows)]

    return draw(count, 20, 100), draw(int(QUERIES["bm25_100k"] * scale), 5, 30)


def read_texts(folder: Path, name: str) -> tuple[list[str], list[str]]:
    texts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return texts["documents"], texts["queries"]


# the contenders --------------------------------------------------------------------------------------------------


def prepare_plain(folder: Path, name: str) -> Timed:
    if name == "bm25_100k":
        return prepare_bm25s(*read_texts(folder, name))
    import torch
    from sentence_transformers import SentenceTransformer, util

    if name == "5k":
        documents, queries = read_texts(folder, name)
        model = SentenceTransformer(str(MODEL), device="cpu")
        encode = lambda texts: model.encode(texts, batch_size=64, convert_to_tensor=True)  # noqa: E731
        return lambda: encode(documents), lambda index: util.semantic_search(encode(queries), index, top_k=K)
    asked = torch.from_numpy(np.load(folder / f"{name}-queries.npy"))
    path = folder / name / "vectors.npy"
    return lambda: torch.from_numpy(np.load(path)), lambda index: util.semantic_search(asked, index, top_k=K)


def prepare_bm25s(documents: list[str], queries: list[str]) -> Timed:
    import bm25s

    def index() -> Any:
        made = bm25s.BM25()
        made.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
        return made

    def search(made: Any) -> None:
        tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
        made.retrieve(tokens, k=K, show_progress=False, n_threads=0)

    return index, search


def prepare_faiss(kind: str, folder: Path, name: str) -> Timed:
    import faiss

    def index() -> Any:
        vectors = np.load(folder / name / "vectors.npy")
        lists = int(4 * len(vectors) ** 0.5)  # as Faiss's guide has it for up to a million
        made = faiss.index_factory(SIZE, FAISS[kind].format(lists=lists), faiss.METRIC_INNER_PRODUCT)
        if kind == "faiss-ivf":
            made.nprobe, made.cp.max_points_per_centroid = PROBED_LISTS, POINTS_A_LIST
        if kind == "faiss-hnsw":
            made.hnsw.efSearch = SEARCHED_NEIGHBOURS
        made.train(vectors)
        made.add(vectors)
        return made

    asked = np.load(folder / f"{name}-queries.npy")
    return index, lambda made: made.search(asked, K)[1]


def measure_recall(found: np.ndarray, folder: Path, name: str) -> float:
    """The share of the exact nearest documents that are among those found, [queries, k]."""
    index, search = prepare_faiss("faiss-flat", folder, name)
    shares = [len(np.intersect1d(*places)) / K for places in zip(found, search(index()), strict=True)]
    return float(np.mean(shares))


def prepare_kaggle_llm(folder: Path, name: str) -> Timed:
    import torch  # noqa: F401  # in a run the encoder has loaded it

    from kaggle_llm.inference.vectors import load_vectors
    from kaggle_llm.retrieval.lexical import LexicalIndex
    from kaggle_llm.retrieval.top_k import search_vectors

    if name in VECTORS:
        asked = np.load(folder / f"{name}-queries.npy")
        return lambda: load_vectors(folder / name), lambda index: list(search_vectors(index, asked, K))
    documents, queries = read_texts(folder, name)
    ids, rows = [list(map(str, range(len(texts)))) for texts in (documents, queries)]
    if name == "5k":
        return prepare_dense(ids, documents, rows, queries)
    return lambda: LexicalIndex(ids, documents), lambda index: index.search(rows, queries, K)


def prepare_dense(ids: list[str], documents: list[str], rows: list[str], queries: list[str]) -> Timed:
    from kaggle_llm.engines.engine import EngineSettings
    from kaggle_llm.inference.model import Model
    from kaggle_llm.inference.run import Run
    from kaggle_llm.retrieval.dense import DenseIndex

    competition: Any = None
    run = Run(SimpleNamespace(engine=EngineSettings()), competition, [Model("encoder", MODEL)])
    run.engine("encoder").embed([[101, 102]])
    return lambda: DenseIndex(run, "encoder", ids, documents, 256), lambda index: index.search(rows, queries, K)


def reopen_lexical(folder: Path, name: str, made: Any) -> float:
    """Seconds of a second start: the texts are hashed, and the kept index is opened."""
    from kaggle_llm.retrieval.lexical import LexicalIndex, WordSettings, describe_index

    documents, _ = read_texts(folder, name)
    about = describe_index(documents, WordSettings())
    made.save(folder / "lexical", about)
    start = time.process_time()
    assert describe_index(documents, WordSettings()) == about
    LexicalIndex(made.ids, documents, folder=folder / "lexical")
    return time.process_time() - start


CONTENDERS: dict[str, Callable[[Path, str], Timed]] = {
    "plain": prepare_plain,
    **{kind: partial(prepare_faiss, kind) for kind in FAISS},
    "kaggle_llm": prepare_kaggle_llm,
}


# measuring -------------------------------------------------------------------------------------------------------


def run_contender(name: str, folder: Path, collection: str, out: Path) -> None:
    """In the contender's own process: its figures go into the file `out`."""
    index, search = CONTENDERS[name](folder, collection)
    start = time.process_time()
    made = index()
    indexed = time.process_time()
    answered = search(made)
    figures = {"index_seconds": indexed - start, "search_seconds": time.process_time() - indexed}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MB
    figures["peak_rss_mb"] = peak
    if name in FAISS:
        figures["recall"] = measure_recall(answered, folder, collection)
    if (name, collection) == ("kaggle_llm", "bm25_100k"):
        figures["reopen_seconds"] = reopen_lexical(folder, collection, made)
    out.write_text(json.dumps(figures), encoding="utf-8")


def call_contender(name: str, folder: Path, collection: str) -> dict[str, float]:
    out = folder / "figures.json"
    words = [PEERS if name in FAISS else sys.executable, __file__, "--contender", name, "--collection", collection]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([*words, "--folder", str(folder), "--out", str(out)], env=environment, check=True)
    figures = json.loads(out.read_text(encoding="utf-8"))
    print(f"{name}, {collection}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
    return {f"{key}_{collection}": value for key, value in figures.items()}


def run_benchmark(names: Sequence[str], asked: Sequence[str], scale: float) -> dict[str, Any]:
    from kaggle_llm.base import records

    contenders = []
    with tempfile.TemporaryDirectory(prefix="kaggle-llm-retrieval-") as temporary:
        collections = write_collections(Path(temporary), asked, scale)
        for name in names:
            figures: dict[str, float] = {}
            for collection in collections:
                if name not in FAISS or collection in VECTORS:
                    figures |= call_contender(name, Path(temporary), collection)
            contenders.append({"name": name, "figures": figures})
    return {
        "benchmark": "retrieval",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "queries": QUERIES,
        "scale": scale,
        "contenders": contenders,
    }


def print_benchmark(report: Mapping[str, Any]) -> None:
    from kaggle_llm.base.tables import print_table

    names = [contender["name"] for contender in report["contenders"]]
    keys = dict.fromkeys(key for contender in report["contenders"] for key in contender["figures"])
    rows = []
    for key in keys:
        cells = [contender["figures"].get(key) for contender in report["contenders"]]
        rows.append([key, *("–" if cell is None else f"{cell:.2f}" for cell in cells)])
    print_table("seconds of the processor, one thread", ("", *names), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go")
    parser.add_argument("--scale", type=float, default=1.0, help="of the collections' sizes, for a trial")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="some of them")
    parser.add_argument("--collections", default=",".join(QUERIES), help="some of them")
    for word, kind in {"contender": str, "collection": str, "folder": Path, "out": Path}.items():
        parser.add_argument(f"--{word}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        run_contender(arguments.contender, arguments.folder, arguments.collection, arguments.out)
        return
    if arguments.json is None or not 0 < arguments.scale <= 1:
        parser.error("--json PATH is needed, and a scale above 0, at most 1")
    has_faiss = any(PEERS.parents[1].glob("lib/*/site-packages/faiss"))
    names = [name for name in arguments.contenders.split(",") if name not in FAISS or has_faiss]
    if not has_faiss:
        print(f"Faiss is left out: it is not in {PEERS.parents[1]} (make peers)", flush=True)
    report = run_benchmark(names, arguments.collections.split(","), arguments.scale)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_benchmark(report)


if __name__ == "__main__":
    main()
