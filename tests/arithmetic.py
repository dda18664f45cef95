"""A competition of arithmetic word problems for tests: its data, its module, and an experiment that solves it by votes.

The experiment is bundled as every other one, with the competition's module put into the bundle's package.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from workspace import ROOT

from kaggle_llm.base import records
from kaggle_llm.kaggle.bundle import add_code, add_model, seal_dataset
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.runtime.pins import DEFAULT, load_runtime

NAME = "arithmetic"
NAMES = ("Ada", "Ben", "Chloé", "Dmitri", "Emi", "Farid")
THINGS = ("apples", "marbles", "pencils", "stamps")

MODULE = '''"""arithmetic: word problems whose answer is a whole number."""

from typing import ClassVar

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.table import Table
from kaggle_llm.competition.metrics import accuracy


class Arithmetic(Competition):
    tables: ClassVar = {"train": Table("id", ("problem",), target="answer"), "test": Table("id", ("problem",))}
    documents = "train"
    metric = accuracy()

    def cell(self, items):
        return items[0]

    def items_in(self, cell):
        return [cell]


COMPETITION = Arithmetic
'''

CONFIG = """competition: {name: arithmetic}
prompt:
  chat: false
  shared: "%(shared)s"
  default_budget: 64
sampling: {max_tokens: %(max_tokens)d, temperature: 0.7, n: %(n)d, seed: 7, stop: ["\\nProblem"]}
engine: {kind: transformers}
server: {call_seconds: 30, fallback: "%(fallback)s"}
"""

SHOTS = "".join(
    f"Problem: {problem}\\nAnswer: {answer}\\n"
    for problem, answer in (
        ("Gus has 4 shells and finds 3 more. How many shells has Gus now?", "4 + 3 = 7"),
        ("Hana had 12 shells and gave 5 of them away. How many shells are left?", "12 - 5 = 7"),
        ("Ivo fills 3 bags with 6 shells each. How many shells is that?", "3 * 6 = 18"),
        ("Juno has 8 books and finds 2 more. How many books has Juno now?", "8 + 2 = 10"),
        ("Kim had 9 books and gave 3 of them away. How many books are left?", "9 - 3 = 6"),
        ("Lea fills 5 bags with 4 books each. How many books is that?", "5 * 4 = 20"),
    )
)
SHOTS += "Problem: {problem}\\nAnswer:"

PREDICT = '''"""From word problems to numbers: several worked solutions vote."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.tasks.vote import extract_answer, sample_until_decided
from kaggle_llm.kaggle.server import ServerSettings
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.inference.run import Run


@dataclass
class Config:
    competition: CompetitionSettings
    prompt: PromptSettings
    sampling: Sampling
    engine: EngineSettings = field(default_factory=EngineSettings)
    server: ServerSettings = field(default_factory=ServerSettings)


def load(run: Run) -> Prompter:
    return Prompter(load_tokenizer(run.model("model")), run.config.prompt)


def read(text: str) -> str:
    return extract_answer(text, r"\\d+")


def score(rows: pl.DataFrame, loaded: Prompter, run: Run) -> pl.DataFrame:
    prompts = [loaded.row(row) for row in rows.iter_rows(named=True)]
    votes = [vote.ranking for vote in sample_until_decided(
        run.engine("model"), prompts, run.config.sampling, read, run.budget, size=2
    )]
    items, shares = ([[pair[at] for pair in vote] for vote in votes] for at in (0, 1))
    return make_ranking(rows["id"].to_list(), items, shares)
'''


def make_problems(count: int, seed: int) -> pl.DataFrame:
    """id, problem, answer: sums, differences and products of small numbers."""
    rows = [(f"p{at:03d}", *make_problem(random.Random(1000 * seed + at))) for at in range(count)]
    return pl.DataFrame(rows, schema={"id": pl.String, "problem": pl.String, "answer": pl.Int64}, orient="row")


def make_problem(chance: random.Random) -> tuple[str, int]:
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    first, second = chance.randint(2, 9), chance.randint(2, 9)
    many = first + second
    return chance.choice(
        [
            (f"{name} has {first} {thing} and finds {second} more. How many {thing} has {name} now?", many),
            (f"{name} had {many} {thing} and gave {second} of them away. How many {thing} are left?", first),
            (f"{name} fills {first} bags with {second} {thing} each. How many {thing} is that?", first * second),
        ]
    )


def make_competition(folder: Path, problems: pl.DataFrame) -> Path:
    """What Kaggle mounts: the first problem stands for the public test set, the hidden one comes by the gateway."""
    folder.mkdir(parents=True)
    problems.with_columns(pl.col("id").str.replace("p", "t")).write_csv(folder / "train.csv")
    problems.head(1).select("id", "problem").write_csv(folder / "test.csv")
    sample_of(problems.head(1)).write_csv(folder / "sample_submission.csv")
    return folder


def sample_of(problems: pl.DataFrame) -> pl.DataFrame:
    return problems.select("id", pl.lit(0, pl.Int64).alias("answer"))


def make_config(shared: str, max_tokens: int, n: int = 6, fallback: str = "0") -> str:
    """config.yaml of the voting experiment; shared: the prompt, its line breaks written as \\n."""
    return CONFIG % {"shared": shared, "max_tokens": max_tokens, "n": n, "fallback": fallback}


def make_bundle(root: Path, model: Path, config: str, predict: str = PREDICT) -> tuple[Path, Path]:
    """The code dataset and the model's folder, as `kaggle-llm bundle` lays them out. $KAGGLE_LLM_ROOT is `root`."""
    experiment, run = root / "exp" / "exp001_vote", root / "output" / "exp001_vote"
    records.write_text(experiment / "train.py", '"""Nothing is trained: solutions vote."""\n')
    records.write_text(experiment / "predict.py", predict)
    records.write_text(run / "config.yaml", config)
    shutil.copytree(ROOT / "submission", root / "submission", ignore=shutil.ignore_patterns("__pycache__"))
    slug = add_model(root / "bundle", NAME, model, Hashes())
    code = root / "bundle" / "code"
    about: dict[str, Any] = {"experiment": "exp001_vote", "competition": NAME}
    about["models"] = [{"name": "model", "folder": slug}]
    about["runtime"] = asdict(load_runtime(DEFAULT))
    about |= {"sources": {}, "wheels": None}
    add_code(code, "exp001_vote")
    records.write_text(code / "src" / "kaggle_llm" / "competition" / f"{NAME}.py", MODULE)
    seal_dataset(code, "code", about, Hashes())
    return code, root / "bundle" / slug / "model"
