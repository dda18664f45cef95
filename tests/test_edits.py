"""An edit costs exactly what it changes: a second run gives what a fresh clone gives, and asks and trains no more.

Edits at random places of a pico repository, one after the other. After each, the repository that was used is run again,
and a fresh clone of it beside it: trained weights are the same to the bit, rankings the same, scores within what a
replay allows; nothing was trained or asked that the clone did not have to ask too, and nothing at all where the edit is
behind the model.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from workspace import ROOT, Workspace, copy_workspace, succeed

from kaggle_llm.base import records
from kaggle_llm.rehearsal.checks import compare_rankings

pytestmark = [pytest.mark.usefixtures("fast_python")]

EXPERIMENT, RUN = "exp002_rerank", "exp002_rerank--edits-smoke"
WORDS = ("--smoke", "run=edits", "folds.rows=14", "parity.rows=1", "parity.exact_rows=1", "retrieval.k=6")
WORDS += ("training.tokens=1500", "training.batch=1", "training.learning_rate=0.01")  # steps that move the weights
EXP, SRC = f"exp/{EXPERIMENT}", "src/kaggle_llm"
COMPETITION, TRAIN = f"{SRC}/competition/demo_misconceptions.py", "input/demo-misconceptions/train.csv"
CODE = [
    f"{EXP}/predict.py",
    f"{EXP}/train.py",
    COMPETITION,
    f"{SRC}/training/trainer.py",
    f"{SRC}/engines/scoring.py",
]
CODE += [
    f"{SRC}/engines/transformers_engine.py",
    f"{SRC}/tasks/choice_training.py",
    f"{SRC}/inference/run.py",
    f"{SRC}/competition/ranked_metrics.py",
]

Change = Callable[[str, random.Random], str]


@dataclass(frozen=True)
class Edit:
    """change: text of the file before → after. trains, asks: whether it can reach a training, or a model's answers."""

    files: tuple[str, ...]
    change: Change
    trains: bool = False
    asks: bool = False


def put(old: str, new: str) -> Change:
    """`old` replaced, `#` in `new` by a number; in a text that was edited so before, the number is another one."""

    def change(text: str, rng: random.Random) -> str:
        number = str(rng.randrange(2, 9))
        pattern = re.escape(new).replace(r"\#", r"[\d.]+")
        if re.search(pattern, text):
            return re.sub(pattern, lambda _: new.replace("#", number), text)
        assert text.count(old) >= 1, f"{old!r} is not there to be edited"
        return text.replace(old, new.replace("#", number), 1)

    return change


def add_comment(text: str, rng: random.Random) -> str:
    """A comment behind an import, another docstring, another layout."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("from __future__"))
    lines.insert(first + 1, f"# {rng.random()}")
    lines[0] = re.sub(r'^"""', f'"""{rng.randrange(9)} ', lines[0])
    return "\n\n".join(["\n".join(lines), ""])


def rename_local(text: str, rng: random.Random) -> str:
    return re.sub(r"\bretrieved\d*\b", f"retrieved{rng.randrange(1000)}", text)


def add_row(text: str, rng: random.Random) -> str:
    """A row of train.csv in front, so that it is among those that are trained on; its words in no row's order."""
    head, *rows = csv.reader(io.StringIO(text))
    cells = [cell.split() for cell in rng.choice(rows)[1:]]
    new = [f"x{rng.randrange(10**6)}", *(" ".join(rng.sample(words, len(words))) for words in cells)]
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head, new, *rows])
    return file.getvalue()


EDITS = {
    "comments": Edit(tuple(CODE), add_comment),
    "a local name": Edit((f"{EXP}/predict.py",), rename_local),
    "post-processing": Edit(
        (f"{SRC}/decisions/rerank_blend.py",), put("self.weight * scores[item]", "self.weight * # * scores[item]")
    ),
    "a metric": Edit((COMPETITION,), put("metric = mean_average_precision(CUT)", "metric = mean_average_precision(#)")),
    "a decision": Edit((f"{EXP}/predict.py",), put("    return Blend()", "    return Blend(0.#)")),
    "what a fit tries": Edit((f"{SRC}/decisions/rerank_blend.py",), put("LARGEST = 20.0", "LARGEST = 0.#")),
    "a helper behind the model": Edit((f"{EXP}/predict.py",), put("def decision(", "SHARE = #\n\n\ndef decision(")),
    "the submission's format": Edit((COMPETITION,), put("    cut = CUT", "    cut = # + CUT")),
    "rows for a rehearsal": Edit(
        (f"{SRC}/competition/competition.py",),
        put("        raw = self.raw(TRAIN)", "        _ = #\n        raw = self.raw(TRAIN)"),
    ),
    "memory": Edit((f"{EXP}/config.yaml",), put("smoke:\n", "engine: {batch_tokens: 409#}\nsmoke:\n")),
    "the prompt": Edit((f"{EXP}/config.yaml",), put('shared: "Question:', 'shared: "# Question:'), True, True),
    "a budget": Edit((f"{EXP}/config.yaml",), put("question: 96", "question: #6"), True, True),
    "LoRA's rank": Edit((f"{EXP}/config.yaml",), put("lora: {r: 16", "lora: {r: #"), True, True),
    "the seed": Edit((f"{EXP}/config.yaml",), put("\nseed: 0", "\nseed: #"), True, True),
    "a helper of the examples": Edit(
        (f"{EXP}/train.py",),
        put("part.truth, size, config.depth", "part.truth, size + #, 9"),
        True,
        True,
    ),
    "the trainer": Edit(
        (f"{SRC}/training/optimizer.py",),
        put("decay = training.weight_decay if", "decay = 0.# + training.weight_decay if"),
        True,
        True,
    ),
    "the task's loss": Edit(
        (f"{SRC}/tasks/choice_training.py",), put("odds = logits[:, 0] -", "odds = # * logits[:, 0] -"), True, True
    ),
    "the engine": Edit(
        (f"{SRC}/engines/scoring.py",),
        put("wanted = logits[:, ids] -", "wanted = 0.# * logits[:, ids].flip(-1) -"),
        asks=True,
    ),
    "the competition's reader": Edit(
        (COMPETITION,),
        put(
            "\n\n\nCOMPETITION =",
            "\n\n    def read(self, name):\n        import polars as pl\n\n        raw = super().read(name)\n"
            '        texts = {"train": ["question"], "test": ["question"]}.get(name, [])\n'
            '        return raw.with_columns(pl.concat_str(pl.lit("# "), pl.col(one)).alias(one) for one in texts)'
            "\n\n\nCOMPETITION =",
        ),
        True,
        True,
    ),
    "a row of train.csv": Edit((TRAIN,), add_row, True, True),
    "another base": Edit((f"{EXP}/config.yaml",), put("models/SmolLM2-135M-Instruct", "models/base#"), True, True),
}


@dataclass(frozen=True)
class Result:
    """What a run left."""

    said: str
    asked: frozenset[tuple[str, bytes]]
    """Model and key of all answers that are kept."""

    @property
    def trained(self) -> bool:
        return "training on" in self.said


def read_asked(workspace: Workspace) -> frozenset[tuple[str, bytes]]:
    found = set()
    for path in (workspace.output / "cache" / "answers").glob("*.sqlite"):
        database = sqlite3.connect(path)
        found |= {(path.stem, key) for (key,) in database.execute("SELECT key FROM answers")}
        database.close()
    return frozenset(found)


def run(workspace: Workspace) -> Result:
    said = succeed(workspace.train(EXPERIMENT, *WORDS, PYTHONPATH=str(workspace.root / "src")))
    return Result(said, read_asked(workspace))


@dataclass
class Pair:
    """The repository that is used, and the folder for fresh clones of it."""

    used: Workspace
    clones: Path
    rng: random.Random
    count: int = 0

    def try_edit(self, name: str, beside_clone: bool = True) -> None:
        """Raises AssertionError where too much was done, and where the used repository and a fresh clone disagree."""
        edit, before = EDITS[name], read_asked(self.used)
        path = self.used.root / self.rng.choice(edit.files)
        text = path.read_text()
        edited = edit.change(text, self.rng)
        path.unlink()  # it may be a hard link
        path.write_text(edited)
        again = run(self.used)
        about = f"after {name} in {path.name}:\n{again.said}"
        assert edit.trains or not again.trained, f"trained {about}"
        assert edit.asks or again.asked == before, f"asked {len(again.asked - before)} {about}"
        if beside_clone:
            clone = self.clone()
            fresh = run(clone)
            assert fresh.trained and again.asked - before == fresh.asked - before, f"asked otherwise {about}"
            self.compare(clone, about)
            shutil.rmtree(clone.root)

    def clone(self) -> Workspace:
        self.count += 1
        root = self.clones / str(self.count)
        shutil.copytree(self.used.root, root, symlinks=True, ignore=shutil.ignore_patterns("output"))
        return Workspace(root)

    def compare(self, clone: Workspace, about: str) -> None:
        mine, fresh = (one.output / RUN for one in (self.used, clone))
        for path in ("fold0/adapter/adapter_model.safetensors", "fold0/merged/model.safetensors"):
            assert records.hash_file(mine / path) == records.hash_file(fresh / path), f"{path} {about}"
        oof, other = (pl.read_parquet(one / "oof.parquet") for one in (mine, fresh))
        assert oof.drop("scores").equals(other.drop("scores")), about
        columns = ["id", "items", "scores"]
        assert compare_rankings(oof.select(columns), other.select(columns)) == [], about
        for file in ("metrics.json", "decision/decision.json", "fold0/decision/decision.json"):
            assert flatten(mine / file) == pytest.approx(flatten(fresh / file), abs=1e-4), f"{file} {about}"


def flatten(path: Path) -> list[float]:
    return [float(text) for text in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", path.read_text())]


@pytest.fixture
def pair(bare: Workspace, make_llm: Callable[..., Path], tmp_path: Path) -> Pair:
    used = copy_workspace(bare, tmp_path / "used")
    shutil.copytree(ROOT / "src", used.root / "src")  # with what is compiled, which an edited file makes worthless
    for number in range(2, 9):
        make_llm(used.root / "input" / "models" / f"base{number}", intermediate_size=24 + 8 * number)
    seed = int(os.environ.get("EDITS_SEED", "0"))
    made = Pair(used, tmp_path / "clones", random.Random(seed))
    first = run(used)
    assert first.trained and first.asked
    return made


KINDS = sorted(EDITS)


@pytest.mark.timeout(600)
def test_edits_cost_what_they_change(pair: Pair) -> None:
    """Behind the model; a training, with a clone beside it."""
    pair.try_edit("a decision", beside_clone=False)
    pair.try_edit("the trainer")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_edits_of_random_kinds_cost_what_they_change(pair: Pair) -> None:
    """The engine's, which asks and does not train; others with another EDITS_SEED."""
    for count, name in enumerate(["the engine", *pair.rng.sample(KINDS, 7)], 1):
        pair.try_edit(name, beside_clone=count % 4 == 0)


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_one_edit_of_each_kind_costs_what_it_changes(pair: Pair) -> None:
    for name in KINDS:
        pair.try_edit(name)


@pytest.mark.release
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2))
def test_two_hundred_edits_in_random_order(pair: Pair, seed: int) -> None:
    pair.rng.seed(seed + 1)
    for _ in range(100):
        pair.try_edit(pair.rng.choice(KINDS))


PART, ANSWERS = f"{SRC}/experiment/part.py", f"{SRC}/inference/answers.py"
# What a key lacks: the edit that shows it, and what is taken out, as (file, text, text without it).
BROKEN = {
    "the trainer's code": ("the trainer", [(PART, '"code": hash_training(task)', '"code": "x"')]),
    "the task's code": ("the task's loss", [(PART, "hash_module_of(task)", '"x"')]),
    "the examples": ("a row of train.csv", [(PART, '"examples": kept', '"examples": "x"')]),
    "the base": ("another base", [(PART, '"base": base.folder, "code": hash_t', '"base": "x", "code": hash_t')]),
    "the settings": (
        "LoRA's rank",
        [(f"{SRC}/training/trainer.py", '"lora": asdict(job.lora),\n        "tr', '"lora": {},\n        "tr')],
    ),
    "the seed": (  # where the examples do not depend on it
        "the seed",
        [
            (f"{SRC}/base/records.py", "dict(inputs), seed])", "dict(inputs)])"),
            (f"{EXP}/train.py", "config.depth, config.seed)", "config.depth, 0)"),
        ],
    ),
    "the parents of merged weights": ("the trainer", [(PART, '"adapter": trained, "code"', '"adapter": "x", "code"')]),
    "the weights of an answer": (
        "the seed",
        [(ANSWERS, '"weights": records.hash_content(folder)', '"weights": "x"')],
    ),
    "the prompt of an answer": ("the prompt", [(ANSWERS, "[int(token) for token in prompt]", "0")]),
    "the engine's code": ("the engine", [(ANSWERS, '"code": hash_code(module)', '"code": "x"')]),
}


@pytest.mark.release
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", sorted(BROKEN))
def test_a_key_that_lacks_something_is_noticed(pair: Pair, key: str) -> None:
    edit, changes = BROKEN[key]
    for file, whole, broken in changes:
        path = pair.used.root / file
        text = path.read_text()
        assert whole in text, f"{whole} is not in {file}"
        path.unlink()
        path.write_text(text.replace(whole, broken))
    run(pair.used)
    with pytest.raises(AssertionError):
        pair.try_edit(edit)


def test_the_edits_are_edits() -> None:
    """Each changes its files, and again when it was there already."""
    rng = random.Random(0)
    for name, edit in EDITS.items():
        for file in edit.files:
            if (ROOT / file).is_file() and (not file.endswith(".csv")):
                once = edit.change((ROOT / file).read_text(), rng)
                assert once != (ROOT / file).read_text(), name
                assert any(edit.change(once, rng) != once for _ in range(9)), name
    assert json.dumps(KINDS)
