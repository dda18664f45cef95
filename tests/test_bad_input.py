"""Bad input through the whole prediction: test.csv → predict.py of exp002 → submission.csv, on pico models."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess

import pytest
from workspace import Workspace, copy_workspace

PREDICT = """
import json, sys
from functools import partial
from pathlib import Path
from kaggle_llm.competition.competition import load_competition
from kaggle_llm.base.config import load_config
from kaggle_llm.inference.cross_fit import Decided
from kaggle_llm.kaggle.predict import offer_submission, predict_test
from kaggle_llm.inference.model import Model
from kaggle_llm.decisions.rerank_blend import Blend
from kaggle_llm.inference.run import Run, import_predict
exp, out = Path("exp/exp002_rerank"), Path(sys.argv[1])
out.mkdir(exist_ok=True)
Decided(Blend(1.0)).save(Path("decision"))
config = load_config(exp / "config.yaml", import_predict(exp).Config, sys.argv[2:])
competition = load_competition(config.competition)
models = [Model(name, Path(folder)) for name, folder in {**config.models, "decision": "decision"}.items()]
with Run(config, competition, models, None, partial(offer_submission, competition, out)) as run:
    ranking = predict_test(exp, run, out)
print("RANKING", json.dumps({i: [items, scores] for i, items, scores in ranking.iter_rows()}))
"""
HEALTHY = [[f"h{n}", f"What is {n} + 7?", str(n + 7), str(n + 70)] for n in range(4)]

STRANGE = {
    "nothing": ["", "", ""],
    "right_to_left": ["\u202eמה זה \u0661\u0662", "\u0627\u0644\u0639", "\u200f"],
    "combining": ["e" + "\u0301" * 300, "\u200d", "\ufeff"],
    "emoji": ["👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿", "𝟜𝟚", "\U0010ffff"],
    "controls": ["a\0b\x1b[31m", "\r\n\t", "<|user|></s><pad>"],
    "huge": ["seven and a half, " * 12_000, "4", "5"],
}


@pytest.fixture(scope="module")
def workspace(bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return copy_workspace(bare, tmp_path_factory.mktemp("bad-input"))


def predict(
    workspace: Workspace, rows: list[list[str]], *words: str, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """The prediction of these rows as a process, in an empty folder; before: code that goes in front of it."""
    shutil.rmtree(workspace.root / "out", ignore_errors=True)
    folder = workspace.root / "input" / "demo-misconceptions"
    for name, head, lines in (
        ("test", ["id", "question", "correct_answer", "wrong_answer"], rows),
        ("sample_submission", ["id", "misconception_id"], [[row[0], "M001"] for row in rows]),
    ):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *lines])
    return workspace.python("-c", before + PREDICT, str(workspace.root / "out"), *words)


def ranking_of(done: subprocess.CompletedProcess[str]) -> dict[str, list]:
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RANKING ")]
    return json.loads(line.removeprefix("RANKING "))


@pytest.mark.timeout(200)
def test_strange_rows_are_answered_and_healthy_ones_beside_them_stay_the_same(workspace: Workspace) -> None:
    alone = ranking_of(predict(workspace, HEALTHY))
    strange = [[name, *texts] for name, texts in STRANGE.items()]
    done = predict(workspace, [*strange[:3], *HEALTHY, *strange[3:]])
    found = ranking_of(done)
    assert set(found) == {*alone, *STRANGE} and all(len(items) == 25 for items, _ in found.values())
    for said in ("cut in the middle: {", "'question': 2", "empty texts are read as ''"):
        assert said in done.stderr
    for name, (items, scores) in alone.items():
        assert found[name][0] == items and found[name][1] == pytest.approx(scores, abs=1e-4)


def test_what_cannot_be_answered_is_an_error_by_name(workspace: Workspace) -> None:
    twice = predict(workspace, [*HEALTHY, HEALTHY[1]])
    assert twice.returncode == 1 and "occur more than once, first ['h1']" in twice.stderr
    long = predict(workspace, [*HEALTHY, ["huge", *STRANGE["huge"]]], "prompt.budgets.question=5000")
    assert long.returncode == 1 and "ValueError: row 'huge': prompt " in long.stderr
    assert "takes 1 to 1024: set prompt.budgets" in long.stderr
    tokenizer = workspace.root / "input" / "models" / "SmolLM2-135M-Instruct"
    without = shutil.copytree(tokenizer, workspace.root / "input" / "models" / "without-tokenizer")
    for path in without.glob("tokenizer*"):
        path.unlink()
    bare = predict(workspace, HEALTHY, "models.reranker=input/models/without-tokenizer")
    assert bare.returncode == 1 and "model folder input/models/without-tokenizer has no tokenizer" in bare.stderr


def test_a_full_disk_leaves_the_submission_from_before_and_is_named(workspace: Workspace) -> None:
    """The system refuses the write: a limit on the size of files, above the sample's and below the submission's."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))"
    rows = [*HEALTHY, *([f"r{n}", "What is 2 + 2?", "4", "5"] for n in range(30))]
    done = predict(workspace, rows, before=limit)
    assert done.returncode == 1 and "stays as it was" in done.stdout
    assert str(workspace.root / "out" / "submission.csv") in done.stderr.splitlines()[-1]
    assert (workspace.root / "out" / "submission.csv").read_text() == "\n".join(
        ["id,misconception_id", *(f"{row[0]},M001" for row in rows), ""]
    )
    assert [path.name for path in (workspace.root / "out").iterdir()] == ["submission.csv"]
