"""Leak audit: what is planted is found with its ids and kind, what is clean is not, limits stop and let pass."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from workspace import Workspace, copy_workspace

from kaggle_llm.base import records
from kaggle_llm.competition.audit import audit_folds, audit_run, read_settings, read_training_rows, report_run
from kaggle_llm.competition.competition import Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.folds import ALWAYS_TRAIN, FoldSettings, assign_folds
from kaggle_llm.competition.leaks import (
    KINDS,
    PERMUTATIONS,
    Leak,
    LeakLimits,
    LeakSettings,
    check_leaks,
    choose_bands,
    find_evaluated_training_rows,
    find_exact_duplicates,
    find_groups_on_both_sides,
    find_insample_teacher_rows,
    find_leaks,
    find_near_duplicates,
    normalise_text,
    print_leaks,
    write_leaks,
)
from kaggle_llm.inference.model import Model, describe_models
from kaggle_llm_demo.misconceptions import NAME, build_competition

WORDS = [f"w{n}" for n in range(400)]


def random_words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def clean_rows(count: int = 40, words: int = 30) -> tuple[pl.DataFrame, pl.Series]:
    """Rows of random texts in folds 0, 1 and −1 in turn: nothing repeats."""
    rng = random.Random(5)
    rows = pl.DataFrame(
        {
            "id": [f"r{n}" for n in range(count)],
            "text": [" ".join(random_words(rng, words)) for _ in range(count)],
            "group": [f"g{n}" for n in range(count)],
        }
    )
    return rows, pl.Series("fold", [(0, 1, -1)[n % 3] for n in range(count)])


def plant(rows: pl.DataFrame, column: str, values: Mapping[int, str | None]) -> pl.DataFrame:
    """`rows` with other values at some places."""
    return rows.with_columns(pl.Series(column, [values.get(n, old) for n, old in enumerate(rows[column])]))


def brief(findings: list[Leak]) -> list[tuple[str, int | None, tuple[str, ...], tuple[str, ...]]]:
    return [(finding.kind, finding.fold, finding.ids, finding.others) for finding in findings]


# what is found -------------------------------------------------------------------------------------------------


def test_a_clean_split_has_no_finding() -> None:
    rows, fold = clean_rows()
    teacher = rows.select("id").with_columns(fold=fold.replace(-1, 2))
    assert find_leaks(rows, fold, LeakSettings(group="group"), ["text"], teacher) == []


def test_a_text_in_two_folds_is_found_for_both_and_one_in_fold_minus_one_is_told_apart() -> None:
    rows, fold = clean_rows()
    text = rows["text"].to_list()
    rows = plant(rows, "text", {7: text[0], 8: text[3]})  # 0 and 3: fold 0; 7: fold 1; 8: fold −1
    findings = find_leaks(rows, fold, LeakSettings(), ["text"])
    assert brief(findings) == [
        ("exact_extra", 0, ("r3",), ("r8",)),
        ("exact_fold", 0, ("r0",), ("r7",)),
        ("exact_fold", 1, ("r7",), ("r0",)),
    ]
    assert findings[0].share == 1 / 14 and findings[2].share == 1 / 13  # 40 rows: 14 in fold 0, 13 in 1


def test_repeats_within_a_fold_and_within_fold_minus_one_are_no_leak() -> None:
    rows, fold = clean_rows()
    text = rows["text"].to_list()
    rows = plant(rows, "text", {3: text[0], 6: text[0] + " more", 5: text[2]})
    assert find_exact_duplicates(rows["id"].to_list(), fold.to_list(), rows["text"].to_list()) == []
    assert find_near_duplicates(rows["id"].to_list(), fold.to_list(), rows["text"].to_list(), 0.9) == []


def test_a_text_with_a_word_changed_is_near_and_the_same_text_is_not() -> None:
    rows, fold = clean_rows(words=80)
    text = rows["text"].to_list()
    rows = plant(rows, "text", {7: text[0] + " more", 8: text[3] + " more", 10: text[9].upper()})
    found = find_near_duplicates(rows["id"].to_list(), fold.to_list(), rows["text"].to_list(), 0.9)
    assert brief(found) == [
        ("near_extra", 0, ("r3",), ("r8",)),
        ("near_fold", 0, ("r0",), ("r7",)),
        ("near_fold", 1, ("r7",), ("r0",)),
    ]


@pytest.mark.parametrize(
    "texts", [("ﬁne  Straße\tno", "FINE STRASSE NO"), ("Ｔｅｎ：１０", "ten:10"), (" a\nb ", "A B")]
)
def test_case_width_ligatures_and_white_space_make_no_difference(texts: tuple[str, str]) -> None:
    assert brief(find_exact_duplicates(["a", "b"], [0, -1], texts)) == [("exact_extra", 0, ("a",), ("b",))]


def test_accents_and_punctuation_make_a_difference() -> None:
    assert find_exact_duplicates(["a", "b", "c"], [0, 1, 2], ["cafe", "café", "cafe."]) == []
    assert normalise_text("cafe\u0301") == normalise_text("café")


def test_near_duplicates_are_found_in_a_script_without_spaces() -> None:
    text, other = "玛丽居里发现了镭元素和钋元素并两次获得诺贝尔奖", "上海是一个很大的城市而北京是中国的首都"
    found = find_near_duplicates(["a", "b", "c"], [0, 1, 1], [text, f"{text}。", other], 0.8)
    assert brief(found) == [("near_fold", 0, ("a",), ("b",)), ("near_fold", 1, ("b",), ("a",))]


@pytest.mark.parametrize("nothing", [None, "", " \t\n"])
def test_two_empty_texts_are_no_leak(nothing: str | None) -> None:
    assert find_exact_duplicates(["a", "b"], [0, 1], [nothing, ""]) == []
    assert find_near_duplicates(["a", "b"], [0, 1], [nothing, ""], 0.1) == []
    rows = pl.DataFrame({"id": ["a", "b"], "text": [nothing, None]}, schema={"id": pl.String, "text": pl.String})
    assert find_leaks(rows, pl.Series([0, 1]), LeakSettings(), ["text"]) == []


def test_short_texts_are_compared_as_a_whole() -> None:
    assert find_near_duplicates(["a", "b"], [0, 1], ["two words", "two words more"], 0.1) == []
    assert len(find_exact_duplicates(["a", "b"], [0, 1], ["one", "One"])) == 2


def test_all_text_columns_are_joined_unless_the_config_names_some() -> None:
    rows = pl.DataFrame({"id": ["a", "b"], "passage": ["p", "p"], "answer": ["x", "y"]})
    fold = pl.Series([0, 1])
    assert find_leaks(rows, fold, LeakSettings(), ["passage", "answer"]) == []
    found = find_leaks(rows, fold, LeakSettings(columns=["passage"]), ["passage", "answer"])
    assert [finding.kind for finding in found] == ["exact_fold", "exact_fold"]


def test_a_group_on_both_sides_is_found_and_a_null_is_no_group() -> None:
    rows, fold = clean_rows()
    rows = plant(rows, "group", {0: "g", 1: "g", 5: "g", 9: None, 10: None})
    found = find_leaks(rows, fold, LeakSettings(group="group"), ["text"])
    assert brief(found) == [
        ("group_extra", 0, ("r0",), ("r5",)),
        ("group_extra", 1, ("r1",), ("r5",)),
        ("group_fold", 0, ("r0",), ("r1",)),
        ("group_fold", 1, ("r1",), ("r0",)),
    ]
    assert found == find_groups_on_both_sides(rows["id"].to_list(), fold.to_list(), rows["group"].to_list())
    assert find_leaks(rows, fold, LeakSettings(), ["text"]) == []


def test_rows_that_a_teacher_was_trained_on_are_found() -> None:
    teacher = pl.DataFrame({"id": ["a", "b", "c", "elsewhere"], "fold": [0, ALWAYS_TRAIN, None, ALWAYS_TRAIN]})
    (found,) = find_insample_teacher_rows(teacher, ["a", "b", "c", "d"])
    assert found == Leak("teacher", None, ("b", "c"), (), 0.5)
    (found,) = find_insample_teacher_rows(teacher.drop("fold"), ["a", "b", "c", "d"])
    assert found.ids == ("a", "b", "c")
    assert find_insample_teacher_rows(teacher.filter(pl.col("fold") == 0), ["a", "b"]) == []


def test_rows_that_the_model_was_trained_on_are_found() -> None:
    found = find_evaluated_training_rows({0: ["c", "d"], 1: ["a", "d"]}, {0: ["a", "b"], 1: ["c", "d"]})
    assert found == [Leak("evaluated", 1, ("d",), (), 0.5)]


def test_an_id_on_both_sides_is_an_evaluated_training_row() -> None:
    rows, fold = clean_rows()
    found = find_leaks(plant(rows, "id", {2: "r0"}), fold, LeakSettings(), ["text"])  # 2: fold −1, another text
    assert brief(found) == [("evaluated", 0, ("r0",), ())]


# near duplicates against every pair ----------------------------------------------------------------------------


def related_texts(rng: random.Random, count: int) -> list[str]:
    """Families of texts between which some words were changed: similarities from 0 to 1."""
    texts: list[str] = []
    for _ in range(count // 5):
        base = random_words(rng, rng.randint(5, 60))
        for _ in range(5):
            words = list(base)
            for _ in range(rng.randint(0, 6)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            texts.append(" ".join(words))
    return texts


def brute_force(ids: list[str], fold: list[int], texts: list[str], similarity: float) -> dict[tuple[str, int], list]:
    """(kind, fold) → pairs (row, first near row), from every pair of rows."""
    sets = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in map(str.split, texts)]
    found: dict[tuple[str, int], list] = {}
    for row, k in enumerate(fold):
        for kind in ("near_fold", "near_extra"):
            for other, side in enumerate(fold):
                if side == k or k == -1 or (side == -1) != (kind == "near_extra") or texts[row] == texts[other]:
                    continue
                if len(sets[row] & sets[other]) >= similarity * len(sets[row] | sets[other]):
                    found.setdefault((kind, k), []).append((ids[row], ids[other]))
                    break
    return found


@pytest.mark.parametrize("similarity", [0.3, 0.7, 1.0])
def test_near_duplicates_are_those_of_comparing_every_pair(similarity: float) -> None:
    rng = random.Random(round(similarity * 10))
    texts = [*related_texts(rng, 400), "a b a b a b", "b a b a b a"]  # the same shingles, another text
    ids = [str(n) for n in range(len(texts))]
    fold = [rng.randint(-1, 2) for _ in texts[:-2]] + [0, 1]
    found = find_near_duplicates(ids, fold, texts, similarity)
    expected = brute_force(ids, fold, texts, similarity)
    assert (
        expected
        and {(finding.kind, finding.fold): list(zip(finding.ids, finding.others, strict=True)) for finding in found}
        == expected
    )
    assert found == find_near_duplicates(ids, fold, texts, similarity)


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_bands_miss_at_most_one_pair_in_a_thousand_with_no_fewer_hashes_than_needed(similarity: float) -> None:
    bands, rows = choose_bands(similarity)
    assert bands * rows <= PERMUTATIONS and (1 - similarity**rows) ** bands <= 0.001
    more = PERMUTATIONS // (rows + 1)
    assert more < 2 or (1 - similarity ** (rows + 1)) ** more > 0.001


def test_eight_times_the_rows_take_eight_times_as_long(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row beside every other one would take 64 times as long. No text is left out, so nothing is said."""
    seconds = []
    for rows in (500, 4000):
        rng = random.Random(0)
        texts = [" ".join(random_words(rng, 100)) for _ in range(rows)]
        texts[-1] = texts[0] + " more"
        start = time.process_time()  # of this process: others may use the machine
        found = find_near_duplicates([str(n) for n in range(rows)], [n % 5 for n in range(rows)], texts, 0.9)
        seconds.append(time.process_time() - start)
        last = str(rows - 1)
        assert brief(found) == [("near_fold", 0, ("0",), (last,)), ("near_fold", 4, (last,), ("0",))]
    assert seconds[1] < 24 * seconds[0]
    assert capsys.readouterr().out == ""


def test_a_crowd_around_one_passage_is_said_and_still_shows_the_planted_row(capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    passage = " ".join(random_words(rng, 170))  # 168 of two texts' 192 shingles are shared: 0.875 similar
    texts = [f"{passage} {' '.join(random_words(rng, 12))}" for _ in range(1500)]
    texts[1499] = texts[0] + " more"
    found = find_near_duplicates([str(n) for n in range(1500)], [n % 3 for n in range(1500)], texts, 0.9)
    assert brief(found) == [("near_fold", 0, ("0",), ("1499",)), ("near_fold", 2, ("1499",), ("0",))]
    assert "set leaks.columns" in capsys.readouterr().out


# limits and what is said ---------------------------------------------------------------------------------------


def test_every_kind_has_a_limit_and_a_way_out() -> None:
    assert set(asdict(LeakLimits())) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_lets_its_share_pass_and_stops_above(kind: str) -> None:
    findings = [Leak(kind, 0, ("a", "b"), (), 0.5)]
    check_leaks(findings, LeakSettings(limits=LeakLimits(**{kind: 0.5})))
    with pytest.raises(ValueError, match=rf"{kind}: 2 row.*50\.0%, limit 49\.0%.*a, b.*raise leaks\.limits\.{kind}"):
        check_leaks(findings, LeakSettings(limits=LeakLimits(**{kind: 0.49})))


def test_all_leaks_above_their_limits_are_said_at_once_with_their_pairs() -> None:
    findings = [
        Leak("exact_fold", 2, ("a", "b", "c", "d"), ("w", "x", "y", "z"), 0.02),
        Leak("evaluated", 1, ("e",), (), 0.001),
        Leak("near_extra", 0, ("f",), ("g",), 0.1),
    ]
    with pytest.raises(ValueError) as error:
        check_leaks(findings, LeakSettings())
    assert "2 leak(s)" in str(error.value) and "near_extra" not in str(error.value)
    assert "of fold 2" in str(error.value) and "a = w, b = x, c = y …" in str(error.value)


def test_findings_are_printed_whatever_the_ids_look_like(capsys: pytest.CaptureFixture[str]) -> None:
    print_leaks([Leak("exact_fold", 0, ("[/red]",), ("[1]",), 0.02)], LeakSettings(), "a--run")
    printed = capsys.readouterr().out
    assert "[/red] = [1]" in printed and "stops" in printed and "2.0%" in printed
    print_leaks([], LeakSettings(), "a--run")
    assert capsys.readouterr().out == "a--run: no leak found\n"


def test_findings_are_written_as_json(tmp_path: Path) -> None:
    write_leaks([Leak("near_fold", 1, ("ä",), ("b",), 0.25)], tmp_path / "leaks.json")
    expected = {"kind": "near_fold", "fold": 1, "ids": ["ä"], "others": ["b"], "share": 0.25}
    assert json.loads((tmp_path / "leaks.json").read_text()) == [expected]


def test_settings_and_rows_that_do_not_fit_are_refused() -> None:
    rows, fold = clean_rows()
    with pytest.raises(ValueError, match=r"near_fold = 1.5"):
        LeakLimits(near_fold=1.5)
    with pytest.raises(ValueError, match=r"similarity = 0\.0"):
        LeakSettings(similarity=0.0)
    with pytest.raises(ValueError, match="each once"):
        LeakSettings(columns=["text", "text"])
    with pytest.raises(ValueError, match=r"no column.*essay"):
        find_leaks(rows, fold, LeakSettings(columns=["essay"]), ["text"])
    with pytest.raises(ValueError, match=r"no column.*writer"):
        find_leaks(rows, fold, LeakSettings(group="writer"), ["text"])
    with pytest.raises(ValueError, match="39 values for 40 rows"):
        find_leaks(rows, fold[:39], LeakSettings(), ["text"])


# the demo, and a run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaks")
    build_competition(root / "input" / NAME, root / "hidden", 0, 600, 6)
    return root


@pytest.fixture
def competition(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Competition:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(workspace))
    return load_competition(CompetitionSettings(NAME))


@pytest.mark.parametrize("settings", [FoldSettings(), FoldSettings(validate=[0]), FoldSettings(validate=[0], rows=4)])
def test_the_demos_folds_pass_with_the_defaults(competition: Competition, settings: FoldSettings) -> None:
    rows = read_training_rows(competition, LeakSettings())
    fold = assign_folds(rows[competition.target], settings)
    check_leaks(find_leaks(rows, fold, LeakSettings(), competition.tables["train"].texts), LeakSettings())


def test_the_groups_column_is_read_from_train_csv(competition: Competition) -> None:
    assert read_training_rows(competition, LeakSettings(group="misconception_id")).width == 5
    with pytest.raises(ValueError, match=r"leaks\.group = 'writer'"):
        read_training_rows(competition, LeakSettings(group="writer"))


def plant_texts(competition: Competition, folder: Path, place: int, other: int) -> Competition:
    """The competition with the texts of row `place` in row `other`, too."""
    shutil.copytree(competition.folder, folder)
    rows = pl.read_csv(folder / "train.csv", infer_schema=False)
    for column in competition.tables["train"].texts:
        rows = plant(rows, column, {other: rows[column][place]})
    rows.write_csv(folder / "train.csv")
    return load_competition(competition.settings, folder)


def test_before_a_training_only_leaks_of_validated_folds_count(competition: Competition, tmp_path: Path) -> None:
    planted = plant_texts(competition, tmp_path / "input", 0, 9)
    fold = pl.Series("fold", [(n % 5) if n < 50 else 2 for n in range(planted.table("train").height)])  # 0: 0, 9: 4
    config, run = SimpleNamespace(leaks=LeakSettings()), tmp_path / "run"
    with pytest.raises(ValueError, match=r"exact_fold: 1 row.* of fold 0"):
        audit_folds(planted, fold, [0, 1], config, run)
    assert [found["fold"] for found in json.loads((run / "leaks.json").read_text())] == [0]
    audit_folds(planted, fold, [1], config, run)
    assert json.loads((run / "leaks.json").read_text()) == []
    audit_folds(planted, fold.replace(4, None), [0, 1], config, run)  # rows that an ensemble does not learn from
    assert json.loads((run / "leaks.json").read_text()) == []


def test_a_smoke_run_stops_at_leaks_of_rows_that_it_leaves_out(bare: Workspace, tmp_path: Path) -> None:
    """It validates the first 8 rows of fold 0; what the real run would stop at is worth knowing before a night."""
    workspace = copy_workspace(bare, tmp_path / "root")
    whole = load_competition(CompetitionSettings(NAME), workspace.root / "input" / NAME)
    fold = assign_folds(whole.table("train")[whole.target], FoldSettings()).to_list()
    last, other = [n for n, k in enumerate(fold) if k == 0][-1], fold.index(1)
    assert fold.count(0) > 8
    plant_texts(whole, workspace.root / "input" / "leaky", last, other)
    done = workspace.train("exp001_retrieve", "--smoke", "run=leaky", "competition.dir=input/leaky")
    assert done.returncode != 0 and "exact_fold: 1 row" in done.stderr and "Traceback" not in done.stderr
    assert not list(workspace.output.glob("exp001_retrieve--leaky-smoke/metrics.json"))


def write_run(root: Path, run: str, competition: Competition, models: dict[str, str], **config: object) -> pl.DataFrame:
    """The files of a complete run with folds 0 and 1 of five."""
    rows = competition.table("train")
    fold = assign_folds(rows[competition.target], FoldSettings(validate=[0, 1]))
    oof = rows.select("id").with_columns(fold=fold).filter(fold >= 0)
    (root / "output" / run).mkdir(parents=True, exist_ok=True)
    oof.write_parquet(root / "output" / run / "oof.parquet")
    settings = {
        "config": {"competition": {"name": NAME, "dir": ""}, **config},
        "fold_models": {
            k: describe_models([Model("encoder", root / "input/models/x"), Model("reranker", root / path)])
            for k, path in models.items()
        },
    }
    inputs = {"train.csv": records.hash_file(competition.folder / "train.csv")}
    records.write_record(root / "output" / run, records.make_record("run", settings, inputs, 0, {}, 1.0))
    return oof


def evaluated(run: str) -> dict[int | None, float]:
    return {finding.fold: finding.share for finding in audit_run(run) if finding.kind == "evaluated"}


def test_a_run_whose_folds_have_their_own_models_evaluates_no_training_row(
    workspace: Path, competition: Competition
) -> None:
    write_run(workspace, "good", competition, {"0": "output/good/fold0/merged", "1": "output/good/fold1/merged"})
    assert evaluated("good") == {}


def test_a_model_of_another_fold_or_of_all_rows_is_found(workspace: Path, competition: Competition) -> None:
    oof = write_run(workspace, "bad", competition, {"0": "output/bad/fold1/merged", "1": "output/bad/full/merged"})
    assert evaluated("bad") == {0: 1.0, 1: 1.0}
    (found,) = [finding for finding in audit_run("bad") if (finding.kind, finding.fold) == ("evaluated", 0)]
    assert list(found.ids) == oof.filter(pl.col("fold") == 0)["id"].to_list()


def test_a_model_of_another_runs_fold_is_judged_by_that_runs_rows(workspace: Path, competition: Competition) -> None:
    other = write_run(workspace, "other", competition, {})
    kept = other.filter((pl.col("fold") != 0) | (pl.int_range(pl.len()) % 2 == 0))  # half of fold 0 was trained on
    kept.write_parquet(workspace / "output" / "other" / "oof.parquet")
    mine = write_run(workspace, "mine", competition, {"0": "output/other/fold0/merged"}).filter(pl.col("fold") == 0)
    lost = mine.join(kept, on="id", how="anti").height
    assert 0 < lost < mine.height and evaluated("mine") == {0: lost / mine.height}


def test_a_runs_teacher_group_and_limits_come_from_its_config(
    workspace: Path, competition: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = competition.table("train")
    rows.select("id").head(6).with_columns(fold=pl.lit(-1)).write_parquet(workspace / "teacher.parquet")
    leaks = {"group": "misconception_id", "limits": {"group_fold": 1.0, "group_extra": 1.0, "teacher": 0.005}}
    write_run(workspace, "taught", competition, {}, leaks=leaks, distillation={"teacher": "teacher.parquet"})
    found = {finding.kind: finding for finding in audit_run("taught")}
    assert {"group_fold", "group_extra"} <= set(found)
    assert found["teacher"].ids == tuple(rows["id"].head(6)) and found["teacher"].share == 0.01
    with pytest.raises(ValueError, match=r"1 leak.*\n.*teacher: 6 row.*limit 0\.5%"):
        report_run("taught")
    assert "group_extra" in capsys.readouterr().out
    assert (workspace / "output" / "taught" / "leaks.json").is_file()


def test_a_run_that_is_not_there_or_has_other_data_is_an_error_with_the_way_out(
    workspace: Path, competition: Competition
) -> None:
    with pytest.raises(FileNotFoundError, match=r"finish python exp/exp009/train\.py --smoke first"):
        audit_run("exp009--smoke")
    with pytest.raises(FileNotFoundError, match=r"finish python exp/exp009/train\.py run=wide … first"):
        audit_run("exp009--wide")
    write_run(workspace, "old", competition, {})
    record = records.read_record(workspace / "output" / "old")
    assert record
    record.inputs["train.csv"] = "other"
    records.write_record(workspace / "output" / "old", record)
    with pytest.raises(ValueError, match=r"another train\.csv"):
        audit_run("old")


def test_a_config_without_the_section_has_the_defaults() -> None:
    assert read_settings({}) == LeakSettings()
    settings = LeakSettings(group="g", limits=LeakLimits(near_fold=0.3))
    assert read_settings({"leaks": asdict(settings)}) == settings
