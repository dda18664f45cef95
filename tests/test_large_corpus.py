"""exp006 on 100,000 passages: memory, and the time that retrieval takes once the indexes are there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from light import answer_offline
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm_demo.open_book import NAME, build_competition

pytestmark = [pytest.mark.slow, pytest.mark.release, pytest.mark.timeout(1800)]
ARTICLES, PASSAGES, VECTOR = 22_500, 100_000, 384
SECONDS, BYTES = 120, 3e9
TRAIN = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = "exp/exp006_open_book"
runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
RETRIEVE = """
import json, resource, time
from pathlib import Path
from kaggle_llm.base.config import load_config
from kaggle_llm.competition.competition import load_competition
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run, import_predict
exp = Path("exp/exp006_open_book").resolve()
predict = import_predict(exp)
config = load_config(exp / "config.yaml", predict.Config, ["retrieval.max_tokens=64"])
competition = load_competition(config.competition)
rows = competition.unlabelled(competition.table("train"))
start = time.monotonic()
with Run(config, competition, [Model(n, Path(m).resolve()) for n, m in config.models.items()], keep_for="a") as run:
    loaded = predict.load(run)
    opened = time.monotonic()
    retrieved = predict.search(rows, loaded, run)
print(json.dumps({"passages": loaded.passages.height, "rows": retrieved.height, "opened": opened - start,
    "searched": time.monotonic() - opened, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def widen_encoder(encoder: Path, folder: Path) -> None:
    """The same encoder with vectors as long as MiniLM's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(str(encoder), device="cpu")
    model.insert(2, Dense(model.get_embedding_dimension(), VECTOR))
    model.save(str(folder))


@pytest.fixture
def workspace(bare: Workspace, tmp_path: Path) -> Workspace:
    made = copy_workspace(bare, tmp_path / "root")
    shutil.rmtree(made.root / "input" / NAME)
    hidden = made.output / "hidden" / NAME
    build_competition(made.root / "input" / NAME, hidden, train_rows=600, hidden_rows=6, articles=ARTICLES)
    encoder = made.root / "input" / "models" / "all-MiniLM-L6-v2"
    widen_encoder(encoder.resolve(), tmp_path / "encoder")
    encoder.unlink()
    encoder.symlink_to(tmp_path / "encoder")
    return made


def test_a_hundred_thousand_passages_are_retrieved_in_minutes_and_three_gigabytes(
    workspace: Workspace, tmp_path: Path
) -> None:
    words = ("--smoke", "retrieval.max_tokens=64", "retrieval.ship_index=true")
    said = succeed(workspace.call(sys.executable, "-c", TRAIN, "exp/exp006_open_book/train.py", *words))
    peak = int(said.split()[-1]) * 1024
    assert peak < BYTES
    figures = json.loads(succeed(workspace.call(sys.executable, "-c", RETRIEVE)).splitlines()[-1])
    print({**figures, "training's peak": peak})
    assert figures["passages"] >= PASSAGES and figures["rows"] == 600
    assert figures["opened"] + figures["searched"] < SECONDS and figures["peak"] * 1024 < BYTES
    run = next(path.name for path in workspace.output.glob("exp006_open_book--*"))
    succeed(workspace.cli("bundle", run))
    checks = answer_offline(workspace, run, tmp_path / "site", replay=0)
    assert "same lists" in checks["replay"].detail
