"""`kaggle-llm init`: what it writes from the files of real layouts trains, ships and is rehearsed as it is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import yaml
from miniatures import FLAGS, MINIATURES, write_miniature
from workspace import ROOT, Workspace, copy_workspace, succeed

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.proposal import Answers, Proposal, propose
from kaggle_llm.experiment import first
from kaggle_llm.experiment.first import choose_source, write_config, write_module
from kaggle_llm.rehearsal import check_competition as checking
from kaggle_llm.rehearsal import stage
from kaggle_llm.rehearsal.check_competition import check_competition

# form, source, texts and group that each of them gets
EXPECTED = {
    "automated-essay-scoring-2": ("OneLabel", "exp008_heads", ("full_text",), ""),
    "commonlit-evaluate-student-summaries": (
        "NumberColumns",
        "exp008_heads",
        ("text", "prompt_question", "prompt_title", "prompt_text"),
        "prompt_id",
    ),
    "eedi-mining-misconceptions-in-mathematics": (
        "RankedItems",
        "exp002_rerank",
        ("ConstructName", "SubjectName", "QuestionText", "right_AnswerText", "AnswerText"),
        "QuestionId",
    ),
    "jigsaw-agile-community-rules": (
        "OneProbability",
        "exp008_heads",
        (
            "body",
            "rule",
            "subreddit",
            "positive_example_1",
            "positive_example_2",
            "negative_example_1",
            "negative_example_2",
        ),
        "",
    ),
    "jigsaw-toxic-comment-classification-challenge": ("ProbabilityColumns", "exp008_heads", ("comment_text",), ""),
    "lmsys-chatbot-arena": ("LabelColumns", "exp004_judge", ("prompt", "response_a", "response_b"), ""),
    "map-charting-student-math-misunderstandings": (
        "RankedLabels",
        "exp002_rerank",
        ("QuestionText", "MC_Answer", "StudentExplanation"),
        "QuestionId",
    ),
    "pii-detection-removal-from-educational-data": ("TokenSpans", "exp005_tags", ("full_text",), ""),
    "wsdm-cup-multilingual-chatbot-arena": ("OneLabel", "exp004_judge", ("prompt", "response_a", "response_b"), ""),
}


def read_flags(name: str) -> Answers:
    flags = dict(zip(FLAGS[name][::2], FLAGS[name][1::2], strict=True))
    return Answers(flags.get("--metric", ""), flags.get("--group", ""))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """input/ of a repository of its own."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path / "input"


def propose_miniature(name: str, folder: Path) -> Proposal:
    write_miniature(name, folder / name)
    return propose(folder / name, name, read_flags(name))


def load_module(proposal: Proposal, path: Path) -> ModuleType:
    path.write_text(write_module(proposal))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MINIATURES)
def test_a_layout_is_understood_and_its_module_passes_every_check(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = propose_miniature(name, folder)
    form, source, texts, group = EXPECTED[name]
    assert (proposal.form, choose_source(proposal), proposal.texts) == (form, source, texts)
    assert proposal.tables["train"].group == group
    module = load_module(proposal, folder / "module.py")
    load = lambda settings, folder=None: module.COMPETITION(settings, folder)  # noqa: E731
    for room in (checking, stage):
        monkeypatch.setattr(room, "load_competition", load)
    checks = check_competition(CompetitionSettings(name))
    assert all(check.ok for check in checks) and len(checks) == 6, [check.detail for check in checks if not check.ok]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_module_is_laid_out_as_the_house_does_it(name: str, folder: Path) -> None:
    path = folder / "module.py"
    proposal = propose_miniature(name, folder)
    path.write_text(write_module(proposal))
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [*ruff, *words, "--config", str(ROOT / "pyproject.toml"), path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_text().count("# Assumed: ") == len(proposal.assumed) > 0, "nothing is guessed silently"


@pytest.mark.parametrize("name", MINIATURES)
def test_a_config_is_its_source_with_the_columns_of_the_competition(name: str, folder: Path) -> None:
    proposal = propose_miniature(name, folder)
    source = choose_source(proposal)
    original = (ROOT / "exp" / source / "config.yaml").read_text()
    config, before = yaml.safe_load(write_config(proposal, source, original)), yaml.safe_load(original)
    assert config["competition"] == {"name": name} and config.keys() == before.keys() - {"leaks"}
    assert config["models"] == before["models"] and config["training"] == before["training"]
    written = json.dumps(config)
    for budgets in (config.get("prompt", {}), config["smoke"].get("prompt", {})):
        assert budgets.get("budgets", {}).keys() <= {*proposal.texts, "text", "MisconceptionName"}
    assert all(text in proposal.answers or f"{{{text}}}" in written for text in proposal.texts if "prompt" in config)
    for column in ("misconception", "wrong_answer", "answer_a", "dialogue"):
        assert column not in written or name.startswith("eedi"), "nothing of the source's competition is left"


def test_letters_of_options_are_asked_by_letter(folder: Path) -> None:
    """An exam with options in columns A to C, as LLM Science Exam has them."""
    folder = folder / "exam"
    folder.mkdir(parents=True)
    rows = [(str(n), f"what is {n}?", *(f"option {letter}{n}" for letter in "ABC"), "ABC"[n % 3]) for n in range(30)]
    train = pl.DataFrame(rows, schema=["id", "prompt", "A", "B", "C", "answer"], orient="row")
    train.write_csv(folder / "train.csv")
    train.head(2).drop("answer").write_csv(folder / "test.csv")
    (folder / "sample_submission.csv").write_text("id,prediction\n0,A B C\n1,A B C\n")
    proposal = propose(folder, "exam", Answers())
    assert (proposal.form, proposal.labels, proposal.answers, proposal.cut) == ("RankedItems", (*"ABC",), (*"ABC",), 3)
    assert proposal.tables["train"].target == "answer" and choose_source(proposal) == "exp004_judge"


def test_a_person_at_the_terminal_is_asked_what_was_assumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = propose_miniature("jigsaw-agile-community-rules", folder)
    given = iter(["body,rule", ""])
    monkeypatch.setattr("builtins.input", lambda question: next(given))
    assert first.ask(proposal, Answers(metric="auc")) == Answers(metric="auc", texts=("body", "rule"))
    assert not list(given) and len(proposal.assumed) == 2, "at most what the files do not say"


def test_what_cannot_be_proposed_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input/unheard-of does not exist: run `kaggle-llm fetch unheard-of`"):
        first.init_competition("unheard-of", Answers(), "")
    name = "wsdm-cup-multilingual-chatbot-arena"
    write_miniature(name, folder / name)
    with pytest.raises(ValueError, match=r"unknown --metric beauty: there are accuracy, auc"):
        propose(folder / name, name, Answers(metric="beauty"))
    (folder / name / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"a table named like test and one named like train are expected"):
        propose(folder / name, name, Answers())


def test_a_module_that_is_there_is_not_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = propose_miniature("wsdm-cup-multilingual-chatbot-arena", folder)
    monkeypatch.setattr(first, "COMPETITIONS", folder.parent)
    module = folder.parent / "wsdm_cup_multilingual_chatbot_arena.py"
    module.write_text("mine")
    with pytest.raises(FileExistsError, match=r"wsdm_cup_multilingual_chatbot_arena\.py exists: edit it"):
        first.write_first(proposal, "")
    assert module.read_text() == "mine"


def go_whole_way(name: str, bare: Workspace, root: Path) -> None:
    """init, check, a smoke training, bundle and rehearsal, without a line written by hand."""
    workspace = copy_workspace(bare, root)
    source = root / "src"
    shutil.copytree(ROOT / "src" / "kaggle_llm", source / "kaggle_llm", ignore=shutil.ignore_patterns("__pycache__"))
    write_miniature(name, root / "input" / name)
    path = {"PYTHONPATH": str(source)}
    succeed(workspace.cli("init", name, *FLAGS[name], "--experiment", "exp100_first", **path))
    succeed(workspace.cli("check", name, **path))
    succeed(workspace.train("exp100_first", "--smoke", **path))
    succeed(workspace.cli("bundle", "exp100_first--smoke", **path))
    done = workspace.cli("rehearse", "exp100_first--smoke", "--rows", "6", "--replay", "0", **path)
    report = json.loads(
        (workspace.output / "rehearsals" / "exp100_first--smoke" / "latest" / "report.json").read_text()
    )
    assert report["ok"] and report["rows"] == 6, [check for check in report["checks"] if not check["ok"]]
    succeed(done)
    succeed(workspace.cli("audit", "exp100_first--smoke", **path))
    ancestry = succeed(workspace.cli("trace", report["submission"]["path"], **path))
    files = [path.name for path in (root / "input" / name).iterdir()]
    assert ancestry.count("the file here is the same") == len(files) and all(file in ancestry for file in files)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_competition_goes_from_its_files_to_a_rehearsed_submission(bare: Workspace, tmp_path: Path) -> None:
    go_whole_way("pii-detection-removal-from-educational-data", bare, tmp_path / "root")


@pytest.mark.release
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MINIATURES)
def test_every_layout_goes_from_its_files_to_a_rehearsed_submission(name: str, bare: Workspace, tmp_path: Path) -> None:
    go_whole_way(name, bare, tmp_path / "root")
