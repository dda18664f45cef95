"""Fine-tuning speed, memory and loss: python tests/benchmarks/finetune.py --json PATH [--rounds 3] [--rows N] [--real]

Every contender trains the same model (SmolLM2-135M-Instruct, LoRA r = 16 on all linear layers) for one epoch on the
same rows (chat → summary of the generated demo-dialogues; with --real abstract → TLDR of scitldr, see
tests/README.md), loss on the summary only, once a round, in turn, always in a process of its own and with the round's
number as its seed; figures are medians of the rounds (rounds.py). A common clock runs around transformers'
Trainer.train, so that imports, loading and tokenising do not count; the loss on held-out rows is computed by one
function from the saved adapter. Useful tokens are a row's own: no padding.

To add a contender: a function (base, rows, seed, folder) that trains with anything that is built on transformers'
Trainer and saves a PEFT adapter into the folder, and its line in CONTENDERS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from machine import describe_machine
from rounds import ROUNDS, run_rounds, show_figure, show_ratio, summarise_rounds

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.csv_table import read_csv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from sources import find_source, require

ROOT = Path(__file__).resolve().parents[2]
DIALOGUES = ROOT / "input" / "demo-dialogues" / "train.csv"
BASE = "input/models/SmolLM2-135M-Instruct"
ROWS, HELD_OUT = 64, 16
MAX_LENGTH = 512  # tokens of a row; longer ones are not drawn, so that nobody truncates
BATCH = 8  # rows a step
AT_A_TIME = 4  # rows that are computed together, where a contender does not choose
TOKENS = {"float32": 256, "bfloat16": 512}  # computed together, by the one that counts them: of equal memory
LEARNING_RATE, WARMUP = 2e-4, 0.1
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes on macOS, else KiB


@dataclass(frozen=True)
class Row:
    """As text and as token ids; the ids of the completion end with the end of text."""

    id: str
    prompt: str
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def choose_rows(count: int, tokenizer: Any, real: bool) -> tuple[list[Row], list[Row]]:
    """`count` rows to train on and HELD_OUT others at most, the same ones at every call."""
    texts = list(read_papers() if real else read_dialogues())
    random.Random(0).shuffle(texts)
    rows = (encode_row(name, prompt, completion, tokenizer) for name, prompt, completion in texts)
    held_out = min(count, HELD_OUT)
    chosen = list(islice((row for row in rows if len(row) <= MAX_LENGTH), count + held_out))
    if len(chosen) < count + held_out:
        raise ValueError(f"{len(chosen)} rows of {MAX_LENGTH} tokens at most, {count} and {held_out} were asked for")
    return chosen[held_out:], chosen[:held_out]


def read_dialogues() -> Iterator[tuple[str, str, str]]:
    """Id, prompt and completion; raises FileNotFoundError before `make data`."""
    for row in read_csv(DIALOGUES).to_dicts():
        yield row["id"], f"{row['dialogue']}\nSummary:", f" {row['summary'].splitlines()[0]}"


def read_papers() -> Iterator[tuple[str, str, str]]:
    source = find_source("scitldr") / "train.jsonl"
    require(source)
    for line in source.read_text(encoding="utf-8").splitlines():
        paper = json.loads(line)
        yield paper["paper_id"], " ".join(paper["source"]) + "\nTL;DR:", " " + paper["target"][0].strip()


def encode_row(name: str, prompt: str, completion: str, tokenizer: Any) -> Row:
    ids = [tokenizer(text)["input_ids"] for text in (prompt, completion)]
    return Row(name, prompt, completion, tuple(ids[0]), (*ids[1], tokenizer.eos_token_id))


def train_usual_script(base: Path, rows: Sequence[Row], seed: int, folder: Path) -> None:
    """Every row padded to the greatest length, the whole vocabulary's logits at every position."""
    from peft import get_peft_model
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    pad = AutoTokenizer.from_pretrained(base).pad_token_id
    model = get_peft_model(load_base(base), make_lora())
    arguments = TrainingArguments(**make_arguments(seed, folder))
    trainer = Trainer(model=model, args=arguments, train_dataset=[pad_row(row, pad) for row in rows])
    trainer.train()
    model.save_pretrained(folder)


def pad_row(row: Row, pad: int) -> dict[str, list[int]]:
    empty = MAX_LENGTH - len(row)
    return {
        "input_ids": [*row.prompt_ids, *row.completion_ids, *[pad] * empty],
        "attention_mask": [1] * len(row) + [0] * empty,
        "labels": [*[-100] * len(row.prompt_ids), *row.completion_ids, *[-100] * empty],
    }


def train_trl(base: Path, rows: Sequence[Row], seed: int, folder: Path) -> None:
    """SFTTrainer as it comes, but for bfloat16 on hardware without it; a prompt-completion data set makes its loss
    completion-only.
    """
    _train_sft(base, rows, folder, make_arguments(seed, folder))


def train_trl_packing(base: Path, rows: Sequence[Row], seed: int, folder: Path) -> None:
    """With packing=True: whole rows into packs of the greatest length (best fit first), labels packed along, position
    ids starting again with each row; a step takes the packs that hold about BATCH rows.
    """
    packs = max(1, round(BATCH * sum(map(len, rows)) / len(rows) / MAX_LENGTH))
    changes = {"packing": True, "per_device_train_batch_size": packs, "gradient_accumulation_steps": 1}
    _train_sft(base, rows, folder, make_arguments(seed, folder) | changes)


def _train_sft(base: Path, rows: Sequence[Row], folder: Path, arguments: Mapping[str, Any]) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=load_base(base),
        args=SFTConfig(max_length=MAX_LENGTH, bf16=has_bfloat16(), **arguments),
        train_dataset=Dataset.from_list([{"prompt": row.prompt, "completion": row.completion} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=make_lora(),
    )
    check_tokens(trainer.train_dataset, rows)
    trainer.train()
    trainer.model.save_pretrained(folder)


def has_bfloat16() -> bool:
    """Whether TRL's default can stay: where torch only emulates bfloat16, a step on a CPU takes minutes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_tokens(dataset: Any, rows: Sequence[Row]) -> None:
    """Raises ValueError unless a trainer's own tokenising gave the tokens, and those with a loss, of `rows`."""
    found = [sum(map(len, dataset["input_ids"])), sum(label != -100 for part in dataset["labels"] for label in part)]
    expected = [sum(map(len, rows)), sum(len(row.completion_ids) for row in rows)]
    if found != expected:
        raise ValueError(f"{found} tokens and labels were prepared, the rows have {expected}: the figures would lie")


def train_kaggle_llm(base: Path, rows: Sequence[Row], seed: int, folder: Path) -> None:
    """This project's trainer, in bfloat16 where TRL is; it chooses what is computed together by tokens, not by rows."""
    from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
    from kaggle_llm.training.settings import LoraSettings, TrainingSettings
    from kaggle_llm.training.trainer import Job, fine_tune

    folder.mkdir()
    dtype = "bfloat16" if has_bfloat16() else "float32"
    settings = TrainingSettings(dtype=dtype, batch_tokens=TOKENS[dtype])
    examples = [CompletionExample(row.prompt_ids, row.completion_ids) for row in rows]
    fine_tune(GenerationTask(), examples, Job(base, folder, LoraSettings(), settings, seed))


CONTENDERS: dict[str, Callable[[Path, Sequence[Row], int, Path], None]] = {
    "usual-script": train_usual_script,
    "trl": train_trl,
    "trl-packing": train_trl_packing,
    "kaggle_llm": train_kaggle_llm,
}


def load_base(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def make_lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def make_arguments(seed: int, folder: Path) -> dict[str, Any]:
    """For TrainingArguments and its subclasses: what has to be alike; the rest is each one's default."""
    import torch

    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": AT_A_TIME,
        "gradient_accumulation_steps": BATCH // AT_A_TIME,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": WARMUP,
        "seed": seed,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),  # without a GPU TRL's default, bf16, is refused unless this is said
    }


@contextmanager
def watch_training() -> Iterator[dict[str, Any]]:
    """The common clock: filled with the figures and settings of the one Trainer.train() that happens inside."""
    from transformers import Trainer

    original = Trainer.train
    seen: dict[str, Any] = {}

    def train(self: Any, *words: Any, **named: Any) -> Any:
        if seen:
            raise RuntimeError("a contender trained twice: the clock takes one training")
        wall, cpu = time.perf_counter(), time.process_time()
        result = original(self, *words, **named)
        seconds = time.perf_counter() - wall
        seen["seconds"], seen["busy_cores"] = seconds, (time.process_time() - cpu) / seconds
        seen["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MB
        seen["steps"], seen["settings"] = self.state.global_step, describe_arguments(self.args)
        return result

    with mock.patch.object(Trainer, "train", train):
        yield seen
    if not seen:
        raise RuntimeError("a contender trained without transformers' Trainer: the clock saw nothing")


def describe_arguments(arguments: Any) -> dict[str, Any]:
    """What a contender used where it may choose."""
    names = ["bf16", "fp16", "gradient_checkpointing", "optim"]
    names += ["per_device_train_batch_size", "gradient_accumulation_steps"]
    names += ["packing", "packing_strategy"] if getattr(arguments, "packing", False) else []
    return {name: getattr(arguments, name) for name in names}


def measure_loss(model: Any, rows: Sequence[Row]) -> float:
    """Mean over the completions' tokens, the end of text included, of −log p(token | all before it), in nats."""
    import torch

    losses: list[float] = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]], device=model.device)
        start = len(row.prompt_ids)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
        losses += torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="none").tolist()
    return statistics.fmean(losses)


def run_contender(name: str, seed: int, count: int, folder: Path, real: bool) -> None:
    """In the contender's own process: train, measure, write folder/result.json."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, set_seed

    base = paths.model_folder(BASE)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows, held_out = choose_rows(count, tokenizer, real)
    set_seed(seed)
    with watch_training() as seen:
        CONTENDERS[name](base, rows, seed, folder / "adapter")
    model = load_base(base).eval()
    before = measure_loss(model, held_out)
    after = measure_loss(PeftModel.from_pretrained(model, folder / "adapter").eval(), held_out)
    useful = sum(map(len, rows))
    settings = {**seen.pop("settings"), "torch_threads": torch.get_num_threads()}
    figures = {"tokens_per_second": useful / seen["seconds"], "loss": after, "loss_before": before}
    figures["tokens_per_processor_second"] = figures["tokens_per_second"] / seen["busy_cores"]  # on a busy machine
    ids = {"train": [row.id for row in rows], "held_out": [row.id for row in held_out]}
    result = {"figures": {**figures, **seen, "useful_tokens": useful}, "settings": settings, "rows": ids}
    records.write_json(folder / "result.json", result)


def call_contender(name: str, seed: int, count: int, real: bool) -> dict[str, Any]:
    """Its result, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--contender", name, "--seed", str(seed), "--rows", str(count), "--folder", folder]
        words += ["--real"] if real else []
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run([sys.executable, __file__, *words], env={**os.environ, **offline}, check=True)
        result: dict[str, Any] = records.read_json(Path(folder) / "result.json")
    return result


def run_benchmark(rounds: int, count: int, real: bool) -> dict[str, Any]:
    results = run_rounds(list(CONTENDERS), rounds, lambda name, number: call_contender(name, number, count, real))
    rows = results[next(iter(results))][0]["rows"]
    if any(result["rows"] != rows for own in results.values() for result in own):
        raise ValueError("the contenders were given different rows")
    runs = {
        name: [{**result["figures"], "load_before": result["load_before"]} for result in own]
        for name, own in results.items()
    }
    contenders = summarise_rounds(runs, ("tokens_per_second", "tokens_per_processor_second", "peak_rss_mb"))
    return {
        "benchmark": "finetune",
        "machine": describe_machine(),
        "rows_of": "scitldr" if real else "demo-dialogues",
        "versions": records.package_versions() | {name: metadata.version(name) for name in ("trl", "datasets")},
        "rows": rows,
        "rounds": rounds,
        "contenders": [
            {**contender, "settings": results[contender["name"]][0]["settings"]} for contender in contenders
        ],
    }


def print_benchmark(report: Mapping[str, Any]) -> None:
    rows = [
        [
            contender["name"],
            show_figure(contender, "tokens_per_second"),
            show_ratio(contender, "tokens_per_second"),
            show_ratio(contender, "tokens_per_processor_second"),
            show_figure(contender, "peak_rss_mb", 0),
            show_ratio(contender, "peak_rss_mb"),
            f"{contender['figures']['loss_before']:.4f}",
            show_figure(contender, "loss", 4),
            f"{contender['figures']['steps']:.0f}",
            f"{contender['figures']['busy_cores']:.2f}",
            f"{contender['figures']['load_before']:.1f}",
        ]
        for contender in report["contenders"]
    ]
    columns = ("", "useful tokens/s", "kaggle_llm ×", "by processor", "peak MB", "kaggle_llm ×", "loss before", "after")
    useful = report["contenders"][0]["figures"]["useful_tokens"]
    title = f"{useful:.0f} useful tokens in {len(report['rows']['train'])} rows, one epoch"
    print_table(title, (*columns, "steps", "busy cores", "load"), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="trainings of each contender")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows that are trained on; fewer for a smoke test")
    parser.add_argument("--real", action="store_true", help="scitldr's rows in place of the generated ones")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.contender and not arguments.json:
        parser.error("--json PATH is needed")
    if min(arguments.rounds, arguments.rows) < 1:
        parser.error(f"--rounds {arguments.rounds} --rows {arguments.rows}: both must be 1 or more")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.contender:
        run_contender(arguments.contender, arguments.seed, arguments.rows, arguments.folder, arguments.real)
        return
    report = run_benchmark(arguments.rounds, arguments.rows, arguments.real)
    records.write_json(arguments.json, report)
    print_benchmark(report)


if __name__ == "__main__":
    main()
