"""Sessions of a rehearsal and drills: that each catches what it is there for."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from light import RUN, bundle_edited, open_light_site
from workspace import Workspace

from kaggle_llm.base import records
from kaggle_llm.competition.competition import Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.inference.model import Model
from kaggle_llm.kaggle.timed import draw_held_out, score_output, write_rows
from kaggle_llm.rehearsal.checks import Check
from kaggle_llm.rehearsal.drills import run_drills
from kaggle_llm.rehearsal.memory_limit import MIB
from kaggle_llm.rehearsal.rehearse import Results, rehearse, rehearse_hostile, rehearse_public, rehearse_rerun
from kaggle_llm.rehearsal.session import Site
from kaggle_llm.rehearsal.stage import FLAT, OWNED, Depot, attach, fill_depot, hidden_test
from kaggle_llm.rehearsal.verdicts import check_memory

pytestmark = pytest.mark.timeout(200)


def by_name(found: Results) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def public_and_rerun(site: Site) -> Results:
    found = Results()
    rehearse_public(site, found)
    rehearse_rerun(site, *hidden_test(site.settings, None)[:2], found)
    return found


REMEMBERS = """
assert ("KAGGLE_IS_COMPETITION_RERUN" in os.environ) == (rows.height != 3), "told otherwise"
for folder in (Path("."), Path.home()):
    path = folder / "count"
    if path.is_file():
        print("remembered in", folder)
        start = start[: int(path.read_text())]
    path.write_text(str(rows.height))
rows = rows.head(len(start))
"""


def test_a_row_count_remembered_from_the_public_test_is_caught_and_what_that_run_left_is_no_answer_of_the_rerun(
    light: Workspace, tmp_path: Path
) -> None:
    """In working/; at home, which is the folder for temporary files too.

    A rerun that fails has no submission, no prediction.json and no origin, though the run before had. Only the rerun
    is told that it is one, and nothing of the stand-in stays.
    """
    with open_light_site(light, tmp_path / "site", REMEMBERS) as site:
        found = by_name(public_and_rerun(site))
    log = (tmp_path / "site" / "log.txt").read_text()
    assert "6 rows asked, 3 rows ranked" in log and len(set(re.findall(r"remembered in (\S+)", log))) == 2, log
    assert not (tmp_path / "site" / "kaggle").exists() and not (tmp_path / "site" / "depot").exists()
    failed = {name for name, check in found.items() if not check.ok}
    assert failed == {"notebook", "time", "row independence"}
    assert found["submission"].ok, "the sample of the hidden rows, which is there from the first seconds"
    assert pl.read_csv(tmp_path / "site" / "submission.csv").height == 6
    assert not (tmp_path / "site" / "prediction.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            'assert "" not in rows["question"].to_list(), "no question"',
            "exit code 1",
            id="empty",
        ),
        pytest.param(
            'start = [n + (rows["question"].to_list().count("") > 1) for n in start]',
            "among hostile rows: row ",
            id="neighbours",
        ),
    ],
)
def test_what_breaks_on_hostile_rows_only_is_caught(light: Workspace, tmp_path: Path, edit: str, words: str) -> None:
    with open_light_site(light, tmp_path / "site", edit) as site:
        found, (test, truth, _) = Results(), hidden_test(site.settings, None)
        rehearse_rerun(site, test, truth, found)
        assert all(check.ok for check in found.checks)
        rehearse_hostile(site, test, found)
    assert not by_name(found)["hostile"].ok and words in by_name(found)["hostile"].detail


def test_more_memory_than_the_limit_fails_and_names_the_process(light: Workspace, tmp_path: Path) -> None:
    edit = "import time; held = [(b'x' * (100 * 2**20), time.sleep(0.2)) for _ in range(30)]"
    with open_light_site(light, tmp_path / "site", edit, memory=800 * MIB) as site:
        found = Results()
        rehearse_public(site, found)
    check = check_memory(found.sessions)
    assert not check.ok and check.detail.startswith("public: over the limit of 800 MB")
    assert "kaggle_llm.kaggle.predict" in check.detail and "killed" in by_name(found)["public"].detail
    assert found.sessions[0].usage.largest > 400 * MIB


SILENT = (  # file of the bundle, what it says, what it says no more
    (
        "submission/boot.py",
        '    names = {model[key] for model in manifest["models"]',
        "    names = {model[key] for model in ()",
    ),
    ("submission/boot.py", "    if missing:\n", "    if False:\n"),
    ("submission/boot.py", "    if done.returncode:\n", "    if False:\n"),
    (
        "submission/boot.py",
        'f"{working} takes no file',
        'f"something takes no file',
    ),
    ("src/kaggle_llm/kaggle/predict.py", "    if digest != sha256:\n", "    if False:\n"),
    ("src/kaggle_llm/kaggle/predict.py", 'for described in self.manifest["models"]]', "for described in ()]"),
)


def test_drills_leave_all_as_it_was_and_a_notebook_that_overlooks_the_damage_fails_them(
    light: Workspace, tmp_path: Path
) -> None:
    bundle = bundle_edited(light)
    before = records.hash_files(bundle)
    with open_light_site(light, tmp_path / "site") as site:
        depot = records.hash_files(site.depot.folder)
        assert all(check.ok for check in run_drills(site))
        assert records.hash_files(site.depot.folder) == depot
    assert records.hash_files(bundle) == before
    with open_light_site(light, tmp_path / "silent") as site:
        for name, old, new in SILENT:
            path = site.depot.code / name
            assert old in path.read_text()
            records.write_text(path, path.read_text().replace(old, new))
        reseal(site.depot.code)
        found = run_drills(site)
    assert [check.ok for check in found] == [False] * 4, found


def reseal(folder: Path) -> None:
    """The manifest lists what lies there."""
    manifest = records.read_json(folder / "MANIFEST.json")
    for entry in manifest["files"]:
        path = folder / entry["path"]
        entry |= {"bytes": path.stat().st_size, "sha256": records.hash_file(path)}
    records.write_json(folder / "MANIFEST.json", manifest)


@pytest.mark.parametrize("adapted", [False, True], ids=["the model", "its base"])
def test_models_from_kaggle_are_attached_where_kaggle_mounts_them(
    light: Workspace, tmp_path: Path, adapted: bool
) -> None:
    """Under their owner, and without it as before."""
    source = "owner/model/framework/variation/3"
    encoder = light.root / "input" / "models" / "all-MiniLM-L6-v2"
    model = Model("e", tmp_path / "adapter", encoder) if adapted else Model("e", encoder)
    described = {"name": "e", "folder": "weights", "base": source} if adapted else {"name": "e", "folder": source}
    bundle, depot = tmp_path / "bundle", Depot(tmp_path / "depot")
    (bundle / "a-code" / "submission").mkdir(parents=True)
    (bundle / "a-code" / "submission" / "boot.py").touch()
    listed = [{"path": "config.json"}]
    records.write_json(bundle / "a-code" / "MANIFEST.json", {"models": [described], "sources": {source: listed}})
    records.write_json(bundle / "MANIFEST.json", {"datasets": [{"slug": "a-code", "folder": "a-code"}]})
    fill_depot(bundle, [model], depot)
    for layout, place in ((OWNED, f"models/{source}"), (FLAT, "model/framework/variation/3")):
        with attach(depot, tmp_path / "input", layout):
            assert records.hash_file(tmp_path / "input" / place / "config.json") == records.hash_file(
                encoder / "config.json"
            )
        assert not (tmp_path / "input").exists()


def test_rows_of_a_reshaped_test_set_are_not_drawn(light: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from kaggle_llm.competition.demo_misconceptions import DemoMisconceptions

    wide = lambda self, ids: StagedTest("test.csv", pl.DataFrame({"row": list(ids)}))  # noqa: E731
    monkeypatch.setattr(DemoMisconceptions, "as_test", wide)
    (light.output / "hidden").rename(light.output / "elsewhere")
    try:
        with pytest.raises(ValueError, match=r"reshapes test\.csv, so its rows cannot be drawn"):
            hidden_test(CompetitionSettings("demo-misconceptions"), 5)
    finally:
        (light.output / "elsewhere").rename(light.output / "hidden")


def test_what_ran_on_kaggle_is_scored_with_its_own_rows_as_the_test_set(
    light: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows vary in number, the cells alone do not name the rows of the test set."""
    test, truth, oof = draw_held_out(RUN, 5)
    rows = write_rows(RUN, {"competition": "demo-misconceptions"}, test)
    original = Competition.ranking_of

    def ranking_of(self: Competition, submission: pl.DataFrame) -> pl.DataFrame:
        assert self.table("test")["id"].to_list() == submission["id"].to_list()
        return original(self, submission)

    competition = load_competition(CompetitionSettings("demo-misconceptions"))
    competition.submission(oof).write_csv(tmp_path / "submission.csv")
    monkeypatch.setattr(Competition, "ranking_of", ranking_of)
    scores = score_output(RUN, tmp_path, truth, oof, rows)
    assert scores["score"] == scores["oof"]


def test_memory_in_other_words_than_a_size_is_refused_at_once(light: Workspace) -> None:
    bundle_edited(light)
    with pytest.raises(ValueError, match="memory 'much': write it like 29GB"):
        rehearse(RUN, memory="much")
