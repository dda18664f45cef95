"""exp008 by its settings alone: a head of each kind for every form of a competition that it fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import yaml
from workspace import ROOT, Workspace, copy_workspace, succeed

from kaggle_llm.competition.competition import Competition, CompetitionSettings, Table
from kaggle_llm.competition.forms import (
    LabelColumns,
    NumberColumns,
    OneLabel,
    OneProbability,
    ProbabilityColumns,
    RankedItems,
    Texts,
)
from kaggle_llm.competition.metrics import (
    exact_match,
    log_loss,
    mean_average_precision,
    quadratic_weighted_kappa,
    roc_auc,
    root_mean_squared_error,
)
from kaggle_llm.competition.rankings import check_answer, is_values
from kaggle_llm.decisions.thresholds import round_levels
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import PromptSettings
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks.heads import Head, answer_without_model, ask_head, list_targets, load_head
from kaggle_llm.tasks.heads_training import list_head_examples, make_head_task
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune

TEST = Table("id", ("body",))
PROMPT = PromptSettings("Text: {body}", chat=False, budgets={"body": 32})
LEVELS = ("low", "mid", "high")


class Level(OneLabel):
    labels = LEVELS
    tables: ClassVar = {"train": Table("id", ("body",), target="level"), "test": TEST}
    metric = quadratic_weighted_kappa(LEVELS)


class Violation(OneProbability):
    tables: ClassVar = {"train": Table("id", ("body",), target="violation"), "test": TEST}
    metric = roc_auc("1")


class Ranked(RankedItems):
    labels, cut = LEVELS, 2
    tables: ClassVar = {"train": Table("id", ("body",), target="level"), "test": TEST}
    metric = mean_average_precision(2)


class Votes(LabelColumns):
    labels: ClassVar = {"a": "share_a", "b": "share_b", "c": "share_c"}
    tables: ClassVar = {
        "train": Table("id", ("body",), target="label", numbers=tuple(labels.values())),
        "test": TEST,
    }
    metric = log_loss(tuple(labels))


class Marks(NumberColumns):
    tables: ClassVar = {"train": Table("id", ("body",), numbers=("content", "wording")), "test": TEST}
    metric = root_mean_squared_error()


class Flags(ProbabilityColumns):
    """As the Toxic Comment competition: several labels of a row, or none."""

    tables: ClassVar = {"train": Table("id", ("body",), numbers=("toxic", "insult", "threat")), "test": TEST}
    metric = roc_auc()


class Said(Texts):
    tables: ClassVar = {"train": Table("id", ("body",), target="level"), "test": TEST}
    metric = exact_match()


TOPICS = ("the value of the digit 7 in 4712", "three quarters and 0.75, and one third", "adds 247 and 138 and forgets")
COLUMNS: dict[type[Competition], Callable[[int], dict[str, str]]] = {  # columns of a row about topic n
    Level: lambda n: {"level": LEVELS[n]},
    Violation: lambda n: {"violation": str(min(n, 1))},
    Ranked: lambda n: {"level": LEVELS[n]},
    Votes: lambda n: {f"share_{label}": "0.8" if n == k else "0.1" for k, label in enumerate("abc")},
    Marks: lambda n: {"content": str(100.0 * n), "wording": str(-0.01 * n)},
    Flags: lambda n: {"toxic": str(int(n > 0)), "insult": str(int(n == 1)), "threat": str(int(n == 2))},
    Said: lambda n: {"level": LEVELS[n]},
}
KINDS = [
    (Level, "ordinal"),
    (Ranked, "classification"),
    (Marks, "regression"),
    (Flags, "multilabel"),
    pytest.param(Level, "regression", marks=pytest.mark.slow),
    pytest.param(Level, "classification", marks=pytest.mark.slow),
    pytest.param(Violation, "classification", marks=pytest.mark.slow),
    pytest.param(Votes, "classification", marks=pytest.mark.slow),
]


def write_tables(form: type[Competition], folder: Path, count: int = 24) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"r{n}", "body": f"{TOPICS[n % 3]}, row {n} of {'abcdefgh'[n % 8] * 3}"} | COLUMNS[form](n % 3)
        for n in range(count)
    ]
    train = pl.DataFrame(rows)
    train.write_csv(folder / "train.csv")
    test = train.select(pl.concat_str(pl.lit("t"), "id").alias("id"), "body").head(3)
    test.write_csv(folder / "test.csv")
    cells = {name: pl.lit(cell) for name, cell in COLUMNS[form](0).items()}
    test.select("id", **cells).write_csv(folder / "sample_submission.csv")


def open_competition(form: type[Competition], folder: Path) -> Competition:
    write_tables(form, folder)
    competition = form(CompetitionSettings("made", str(folder)))
    competition.check()
    return competition


@pytest.mark.parametrize(("form", "task"), KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_a_head_learns_what_the_competition_asks_for(
    form: type[Competition], task: Any, pico_encoder: Path, tmp_path: Path
) -> None:
    """What is answered passes the checks of the submission, and is better than what needs no model."""
    competition = open_competition(form, tmp_path / "input")
    rows = competition.table("train")
    untrained = load_head(pico_encoder, task, competition, PROMPT)
    training = TrainingSettings(epochs=15, batch=8, learning_rate=5e-3, head_learning_rate=2e-2, warmup=0.0)
    job = Job(pico_encoder, tmp_path / "trained", LoraSettings("full"), training, seed=0)
    examples = list_head_examples(untrained, competition, rows)
    fine_tune(make_head_task(untrained, competition, rows), examples, job)
    head = load_head(job.folder, task, competition, PROMPT)
    assert head.prompts(rows) == [list(example.ids) for example in examples]
    engine = make_engine(job.folder, EngineSettings())
    asked = competition.unlabelled(rows)
    answer = ask_head(asked, head, engine, Budget())
    assert ask_head(asked.clear(), head, engine, Budget()).height == 0
    engine.close()
    found = round_levels(head.settings.levels).apply(answer) if head.settings.levels else answer
    before = answer_without_model(rows.head(6), task, competition)
    assert is_values(found) == is_values(before) == (form in (Marks, Flags))
    assert check_answer(before, rows["id"].to_list()[:6]).height == 6
    check_answer(found, rows["id"].to_list())
    score, floor = (competition.metric.score(frame, competition.truth(rows)) for frame in (found.head(6), before))
    assert competition.metric.sign * (score - floor) > 0
    test = competition.table("test")
    told = found.head(3).with_columns(id=test["id"])
    assert competition.check_submission(competition.submission(told)) == []


def test_targets_of_every_kind_by_hand(tmp_path: Path, pico_encoder: Path) -> None:
    def targets(form: type[Competition], task: Any) -> list[tuple[float, ...]]:
        competition = open_competition(form, tmp_path / f"{form.__name__}")
        settings = load_head(pico_encoder, task, competition, PROMPT).settings
        return list_targets(settings, competition.truth(competition.table("train")))[:3]

    assert targets(Level, "ordinal") == [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    assert targets(Level, "regression") == [(0.0,), (1.0,), (2.0,)]
    assert targets(Violation, "classification") == [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    assert targets(Votes, "classification")[1] == pytest.approx((0.1, 0.8, 0.1))
    assert targets(Flags, "multilabel") == [(0.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0)]
    assert targets(Marks, "regression") == [(0.0, 0.0), (100.0, -0.01), (200.0, -0.02)]


def test_what_needs_no_model_knows_the_rows_that_are_not_asked(tmp_path: Path) -> None:
    competition = open_competition(Marks, tmp_path)
    train = competition.table("train")
    high = train.filter(pl.col("content") == "200.0")
    mean = answer_without_model(competition.unlabelled(high), "regression", competition)
    assert mean["values"][0].to_list() == pytest.approx([50.0, -0.005])
    levels = open_competition(Level, tmp_path)
    asked = levels.table("train").filter(pl.col("level") == "low")
    assert set(answer_without_model(asked, "ordinal", levels)["items"].explode()) == {"high"}, "1.5 is rounded to even"


@pytest.mark.parametrize(
    ("form", "task", "message"),
    [
        (Marks, "ordinal", "head.task = ordinal, but made asks for numbers: set head.task=regression"),
        (Votes, "ordinal", "made asks for a score of every label: set head.task=classification"),
        (Violation, "regression", "asks for a score of every label"),
        (Flags, "regression", "asks for probabilities: set head.task=multilabel"),
        (Votes, "multilabel", "made is no ProbabilityColumns: set head.task=classification"),
        (Said, "classification", "made names no labels for a head"),
    ],
)
def test_a_head_that_does_not_fit_the_form_is_refused(
    form: type[Competition], task: Any, message: str, tmp_path: Path, pico_encoder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_head(pico_encoder, task, open_competition(form, tmp_path), PROMPT)


@pytest.mark.parametrize(("base", "specials"), [("pico_encoder", (1, 1)), ("pico_llm", (0, 0))])
def test_a_prompt_is_what_the_tokenizer_makes_of_the_text(
    base: str, specials: tuple[int, int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    competition = open_competition(Level, tmp_path)
    head: Head = load_head(request.getfixturevalue(base), "ordinal", competition, replace(PROMPT, budgets={}))
    tokenizer, rows = head.prompter.tokenizer, competition.table("train").head(2)
    before, after = specials
    for ids, text in zip(head.prompts(rows), rows["body"].to_list(), strict=True):
        assert ids == list(tokenizer(f"Text: {text}")["input_ids"])
        inner = tokenizer(f"Text: {text}", add_special_tokens=False)["input_ids"]
        assert len(ids) == before + len(inner) + after


def test_a_long_text_of_an_encoder_is_cut_to_its_budget(tmp_path: Path, pico_encoder: Path) -> None:
    head = load_head(pico_encoder, "ordinal", open_competition(Level, tmp_path), replace(PROMPT, budgets={"body": 20}))
    rows = pl.DataFrame({"id": ["a"], "body": [" ".join(TOPICS) * 9]})
    (ids,) = head.prompts(rows)
    fixed = len(head.prompter.tokenizer("Text: …")["input_ids"])
    assert 20 <= len(ids) <= 20 + fixed + 3, "a piece that began inside a word is spelled anew"


def test_no_prompt_is_longer_than_the_encoder_reads(
    tmp_path: Path, pico_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hidden text whose cut spells anew ended the notebook: of 512 places of an encoder none is left over."""
    head = load_head(pico_encoder, "ordinal", open_competition(Level, tmp_path), replace(PROMPT, budgets={"body": 500}))
    tokenizer, text = head.prompter.tokenizer, " ".join(TOPICS) * 30
    (ids,) = head.prompts(pl.DataFrame({"id": ["a"], "body": [text]}))
    whole = tokenizer(f"Text: {text}")["input_ids"]
    assert len(ids) == tokenizer.model_max_length == 128 < len(whole)
    assert (ids[:40], ids[-40:]) == (whole[:40], whole[-40:]), "both ends stay, with what encloses them"
    assert "'the whole prompt': 1" in capsys.readouterr().err


MODULE = "from test_head_kinds import {0}\n\nCOMPETITION = {0}\n"
SETTINGS: dict[type[Competition], dict[str, Any]] = {  # form → sections of config.yaml, beside its name and prompt
    Marks: {"head": {"task": "regression", "pooling": "mean"}},
    Votes: {"head": {"task": "classification"}},
    Ranked: {
        "head": {"task": "classification", "pooling": "attention"},
        "models": {"body": "input/models/SmolLM2-135M-Instruct"},
        "lora": {"method": "lora"},
    },
    Level: {"head": {"task": "regression"}},
    Flags: {"head": {"task": "multilabel"}},
}


@pytest.fixture(scope="module")
def workspace(bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The package with a module for each form."""
    made = copy_workspace(bare, tmp_path_factory.mktemp("kinds") / "root")
    source = made.root / "src" / "kaggle_llm"
    shutil.copytree(ROOT / "src" / "kaggle_llm", source, ignore=shutil.ignore_patterns("__pycache__"))
    for form in SETTINGS:
        write_tables(form, made.root / "input" / f"made-{form.__name__.lower()}", 60)
        module = source / "competition" / f"made_{form.__name__.lower()}.py"
        module.write_text(MODULE.format(form.__name__))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("form", SETTINGS, ids=lambda form: form.__name__)
def test_another_competition_is_a_matter_of_settings(form: type[Competition], workspace: Workspace) -> None:
    name = f"made-{form.__name__.lower()}"
    path = Path("exp", "exp008_heads", "config.yaml")
    config = yaml.safe_load((ROOT / path).read_text()) | {"competition": {"name": name}, "leaks": {}} | SETTINGS[form]
    config["prompt"] = {"chat": False, "shared": "{body}", "budgets": {"body": 32}}
    config["folds"] = {"count": 4, "validate": [0]}
    (workspace.root / path).write_text(yaml.safe_dump(config))
    said = succeed(workspace.train("exp008_heads", "--smoke", PYTHONPATH=f"{workspace.root / 'src'}:{ROOT / 'tests'}"))
    folder = workspace.output / "exp008_heads--smoke"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["before"] is not None and metrics["metric"] in said
    assert {"length alone", "ridge on TF-IDF"} <= metrics["also"].keys()
    steps = json.loads((folder / "parity.json").read_text())["steps"]
    assert [step["status"] for step in steps] == ["passed"] * ("lora" in SETTINGS[form])
