"""What each of `training.tricks` does to exp008's head on real data: where in its abstract a sentence stands.

    python tests/benchmarks/tricks.py --json tests/benchmarks/tricks.json

MiniLM with a head for three classes of equal size on the mean of its hidden states, trained as exp008 is, with none and
with each alone; accuracy on sentences of other papers. Several dropout masks need a head of one state: the first
token's. Class weights are tried where a fifth of the middle class is taught; in what is held out it is as large as the
others. The difference is the mean over the seeds, its interval that of whole papers drawn again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from machine import describe_machine
from sources import ROOT, find_source, require

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.texts import encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.tasks.heads import HeadSettings, Pooling, pool_tokens
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, TrickSettings, WatchSettings
from kaggle_llm.training.trainer import Job, fine_tune

ENCODER = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
THIRDS = ["first third", "middle", "last third"]
TOKENS = 24  # of a sentence, at most
DRAWS = 2000


@dataclass(frozen=True)
class Contender:
    """A training; against: the one without the trick that is otherwise like it.

    middle: share of the taught sentences of the middle third that are kept.
    """

    training: dict[str, Any] = field(default_factory=dict)
    against: str = "none"
    pooling: Pooling = "mean"
    middle: float = 1.0


def trick(**values: float) -> dict[str, Any]:
    return {"tricks": TrickSettings(**values)}  # type: ignore[arg-type]


CONTENDERS = {
    "none": Contender(),
    "ema": Contender(trick(ema=0.9)),
    "awp": Contender(trick(awp=0.01)),
    "rdrop": Contender(trick(rdrop=1.0)),
    "layer_decay": Contender(trick(layer_decay=0.9)),
    "label_smoothing": Contender(trick(label_smoothing=0.1)),
    "focal": Contender(trick(focal=2.0)),
    "freeze": Contender(trick(freeze=0.2)),
    "watch: best": Contender({"watch": WatchSettings(rows=40, steps=5, keep="best")}),
    "none (first token)": Contender(against="none (first token)", pooling="model"),
    "multi_sample_dropout": Contender(trick(multi_sample_dropout=5), "none (first token)", pooling="model"),
    "none (few of the middle)": Contender(against="none (few of the middle)", middle=0.2),
    "class_weight": Contender(trick(class_weight=1.0), "none (few of the middle)", middle=0.2),
}


@dataclass(frozen=True)
class Sentences:
    """Token ids of sentences, the third of the abstract that each stands in, and its paper."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    thirds: list[int] = field(default_factory=list)
    papers: list[int] = field(default_factory=list)


def read_sentences(name: str, papers: int) -> Sentences:
    """Of the first papers of a part of scitldr."""
    path = find_source("scitldr") / f"{name}.jsonl"
    require(path)
    abstracts = [json.loads(line)["source"] for line in path.read_text(encoding="utf-8").splitlines()[:papers]]
    texts = [text for abstract in abstracts for text in abstract]
    rows = [tuple(ids) for ids in encode_texts(load_tokenizer(ENCODER), texts, TOKENS)]
    thirds = [3 * place // len(abstract) for abstract in abstracts for place in range(len(abstract))]
    return Sentences(rows, thirds, [number for number, abstract in enumerate(abstracts) for _ in abstract])


def draw_taught(taught: Sentences, middle: float, seed: int) -> list[int]:
    """Rows in the order of the training, without 1 − `middle` of those of the middle third."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(taught.rows)).tolist()
    if middle == 1:
        return order
    return [row for row in order if taught.thirds[row] != 1 or rng.random() < middle]


def measure(taught: Sentences, held: Sentences, contender: Contender, seed: int) -> tuple[np.ndarray, float]:
    """[held-out sentences] 1 where the head is right, 0 where not; and the training's processor seconds."""
    targets = np.eye(len(THIRDS))[taught.thirds]
    rows = draw_taught(taught, contender.middle, seed)
    examples = [HeadExample(taught.rows[row], tuple(targets[row].tolist())) for row in rows]
    values = {"epochs": 2, "batch": 8, "batch_tokens": 4096, "learning_rate": 3e-4, "head_learning_rate": 3e-3}
    training, pooling = TrainingSettings(**{**values, **contender.training}), contender.pooling
    with tempfile.TemporaryDirectory() as folder:
        job = Job(ENCODER, Path(folder) / "trained", LoraSettings(method="full"), training, seed)
        start = time.process_time()
        fine_tune(HeadTask(HeadSettings("classification", THIRDS, pooling=pooling)), examples, job)
        seconds = time.process_time() - start
        engine = make_engine(job.folder, EngineSettings())
        answers = engine.logits(held.rows)
        engine.close()
    if pooling != "model":
        answers = [pool_tokens(row, pooling) for row in answers]
    return (np.stack(answers).argmax(1) == held.thirds).astype(float), seconds


def draw_interval(gains: np.ndarray, papers: Sequence[int]) -> tuple[float, float]:
    """95 % of the mean gain [sentences], whole papers drawn with replacement."""
    sums, counts = (np.bincount(papers, weights) for weights in (gains, np.ones_like(gains)))
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def summarise(found: Mapping[str, Sequence[tuple[np.ndarray, float]]], papers: Sequence[int]) -> list[dict[str, Any]]:
    """The figures of each contender. found: of each seed what measure() gave."""
    right, made = {name: np.stack([each for each, _ in measured]) for name, measured in found.items()}, []
    for name, measured in found.items():
        gains = right[name] - right[CONTENDERS[name].against]
        low, high = draw_interval(gains.mean(0), papers)
        figures = {"accuracy": float(right[name].mean()), "difference": float(gains.mean()), "low": low, "high": high}
        figures |= {"processor_seconds": float(np.mean([took for _, took in measured]))}
        made.append({"name": name, "figures": figures, "difference_of_seeds": gains.mean(1).tolist()})
    return made


def show(contender: Mapping[str, Any]) -> list[str]:
    figures = contender["figures"]
    interval = f"{figures['difference']:+.4f} [{figures['low']:+.4f}, {figures['high']:+.4f}]"
    seeds = " ".join(f"{gain:+.4f}" for gain in contender["difference_of_seeds"])
    return [contender["name"], f"{figures['accuracy']:.4f}", interval, seeds, f"{figures['processor_seconds']:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--papers", type=int, nargs=2, default=(32, 40), help="taught, held out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tricks", default=",".join(name for name in CONTENDERS if CONTENDERS[name].against != name))
    options = parser.parse_args()
    taught, held = (read_sentences(*part) for part in zip(("train", "dev"), options.papers, strict=True))
    tricks = options.tricks.split(",")
    names = dict.fromkeys([*(CONTENDERS[name].against for name in tricks), *tricks])
    found: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name, measured in found.items():
            measured.append(measure(taught, held, CONTENDERS[name], seed))
        contenders = summarise(found, held.papers)
        columns = ("trick", "accuracy", "difference", "of each seed", "processor s")
        title = f"{len(taught.rows)} taught, {len(held.rows)} held out, {seed + 1} seeds"
        print_table(title, columns, [show(each) for each in contenders])
        if options.json:
            versions = records.package_versions()
            about = {"benchmark": "tricks", "machine": describe_machine(), "versions": versions}
            options.json.write_text(json.dumps({**about, "contenders": contenders}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
