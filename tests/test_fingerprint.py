"""Content hashes: the same for what is the same, whatever Python or process says so, and others for all else."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kaggle_llm.base import fingerprint, records
from kaggle_llm.base.fingerprint import (
    COMPUTING,
    FROM_TEXTS,
    hash_code,
    hash_frame,
    hash_module_of,
    hash_source,
    list_code,
    plain_value,
)
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask

SOURCE = '''"""What a module is."""

from __future__ import annotations

import json as text
from collections.abc import Callable

LIMIT = 1.5


class Box:
    """Holds."""

    size: int = 3
    """Of it."""

    def open(self, *names: str, by: Callable[[int], int] | None = None, **more: object) -> str:
        """Opens."""
        width = 2 * self.size
        match names:
            case [first, *_] if by:
                return f"{first!r:>{width}}" f"{LIMIT:{self.size}.{width}f}"
            case {"a": 1, **rest}:
                return f"{rest=}" + text.dumps(more)
        return "".join(name for name in names if not name.startswith(("é", "x"))) or b"\\x00".hex()
'''
PINNED = "9e54a5c84a99161e6223e7e78d8ee232e66342a41431dafedc6062d9849b0425"  # by Python 3.11, 3.12, 3.13


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_later(path: Path, text: str) -> None:
    """In a later tick of the clock: within one, a file is read once."""
    before = path.stat().st_mtime_ns
    write(path, text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def source(folder: Path, text: str) -> str:
    """Of a text, in a file of its own."""
    return hash_source(write(folder / f"{records.hash_json(text)[:16]}.py", text))


def test_a_file_has_the_same_hash_under_every_python(tmp_path: Path) -> None:
    assert source(tmp_path, SOURCE) == PINNED


def test_a_format_that_ends_in_a_field_is_alike_under_every_python(tmp_path: Path) -> None:
    """Python 3.12 puts an empty text behind the last field of a format, 3.11 and 3.13 do not."""
    tree = ast.parse('f"{name:{width}}"')
    plain = fingerprint.describe_node(tree)
    formats = [node.format_spec for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec]
    for one in formats:
        assert isinstance(one, ast.JoinedStr)
        one.values = [*(value for value in one.values if isinstance(value, ast.FormattedValue)), ast.Constant("")]
    assert formats and fingerprint.describe_node(tree) == plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What a module is."""', '"""Something else."""'),
        ('"""What a module is."""\n', ""),
        ('    """Holds."""\n', '    """Holds much.\n\n    More of it.\n    """\n'),
        ('    """Of it."""\n', ""),
        ('        """Opens."""\n', "        # opens\n"),
        ("LIMIT = 1.5", "LIMIT = (\n    1.50  # of what\n)"),
        ("\n\n\nclass", "\n\n\n\n\n# A class.\nclass"),
        ("2 * self.size", "(2) * (self.size)"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert SOURCE.count(old) == 1
    assert source(tmp_path, SOURCE.replace(old, new)) == source(tmp_path, SOURCE)


def test_how_deep_a_line_is_indented_does_not_count(tmp_path: Path) -> None:
    assert source(tmp_path, SOURCE.replace("    ", "  ")) == source(tmp_path, SOURCE)


CHANGES = [
    ("LIMIT = 1.5", "LIMIT = 1.25"),
    ("LIMIT = 1.5", 'LIMIT = "1.5"'),
    ("LIMIT = 1.5", "LIMIT: float = 1.5"),
    ("LIMIT = 1.5", "LIMIT = True"),
    ("LIMIT = 1.5", "LIMIT = 1"),
    ("LIMIT = 1.5", "LIMIT = None"),
    ("LIMIT = 1.5", "LIMIT = ..."),
    ("LIMIT = 1.5", 'LIMIT = "Ellipsis"'),
    ("LIMIT = 1.5", 'LIMIT = b"1.5"'),
    ("LIMIT = 1.5", "LIMIT = \"b'1.5'\""),
    ("LIMIT = 1.5", "LIMIT = 1.5j"),
    ("LIMIT = 1.5", "LIMIT = -1.5"),
    ("LIMIT = 1.5", "LIMIT = ()"),
    ("LIMIT = 1.5", "LIMIT = []"),
    ("LIMIT = 1.5", 'LIMIT = ""'),
    ("LIMIT = 1.5", "LIMITS = 1.5"),
    ("LIMIT = 1.5\n", ""),
    ("LIMIT = 1.5\n", "LIMIT = 1.5\nLIMIT = 1.5\n"),
    ("json as text", "json"),
    ("class Box:", "class Box(dict):"),
    ("class Box:", "@str\nclass Box:"),
    ("class Box:", "class Box(metaclass=type):"),
    ("    def open", "    async def open"),
    ("    def open", "    @staticmethod\n    def open"),
    ("*names: str", "names: str"),
    ("*names: str", "*names: int"),
    (", **more: object", ""),
    (" | None = None", ""),
    (" -> str", ""),
    ("2 * self.size", "self.size * 2"),
    ("2 * self.size", "2 + self.size"),
    ("!r", "!s"),
    ("!r", ""),
    (":>{width}", ""),
    (":>{width}", ":<{width}"),
    ("{rest=}", "{rest}"),
    ("[first, *_]", "[first, _]"),
    ("**rest", "**others"),
    (" if by:", ":"),
    ("if not name", "if name"),
    (") or b", ") and b"),
    ('("é", "x")', '("x", "é")'),
    ("\\x00", "\\x01"),
    ('return "".join', 'yield "".join'),
]


def test_every_change_of_code_counts(tmp_path: Path) -> None:
    texts = [SOURCE]
    for old, new in CHANGES:
        assert SOURCE.count(old) >= 1, old
        texts.append(SOURCE.replace(old, new, 1))
    hashes = [source(tmp_path, text) for text in texts]
    twins = [
        (one, other) for (one, a), (other, b) in itertools.combinations(zip(texts, hashes, strict=True), 2) if a == b
    ]
    assert not twins


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py", "x = 1\n")
    before = hash_source(path)
    write_later(path, "x = 2\n")
    assert hash_source(path) != before


# frames ---------------------------------------------------------------------------------------------------------

FRAME = pl.DataFrame(
    {
        "id": [f"r{n}" for n in range(6)],
        "text": ["a", "", None, "länger", "a|b", "\n"],
        "number": [1.5, None, float("nan"), -0.5, float("inf"), 0.0],
        "count": [1, 2, 3, None, 5, 6],
        "yes": [True, False, None, True, True, False],
        "items": [["a", "bc"], [], None, ["ab", "c"], [None, "x"], [""]],
        "nested": [[[1], [2]], [[1, 2]], [], None, [[]], [[3]]],
        "pair": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None, {"a": 2, "b": ""}, {"a": 3, "b": None}, None],
        "kind": pl.Series(["p", "q", "p", None, "q", "r"], dtype=pl.Categorical),
        "bytes": [b"", b"\x00", None, b"a", b"b", b"c"],
        "money": [Decimal("1.10"), None, Decimal("2.20"), Decimal("3.30"), Decimal("4.40"), Decimal("5.50")],
        "vector": pl.Series([[1, 2]] * 6, dtype=pl.Array(pl.Int8, 2)),
    }
)


@pytest.mark.parametrize(
    "copy",
    [
        FRAME.clone(),
        pl.concat([FRAME[:1], FRAME[1:4], FRAME[4:]]),
        pl.concat([FRAME[:3], FRAME[3:]], rechunk=False),
        pl.concat([FRAME, FRAME])[6:],
        pl.concat([FRAME, FRAME]).slice(3, 6)[[3, 4, 5, 0, 1, 2]],
        pl.concat([FRAME, FRAME.with_columns(id=pl.lit("x"))]).filter(pl.col("id") != "x"),
        FRAME.select([FRAME[name] for name in FRAME.columns]),
        FRAME[::-1][::-1],
    ],
)
def test_a_frame_has_the_same_hash_however_it_was_put_together(copy: pl.DataFrame) -> None:
    assert copy.equals(FRAME, null_equal=True)
    assert hash_frame(copy) == hash_frame(FRAME)


def test_frames_that_a_file_gives_back_are_the_same(tmp_path: Path) -> None:
    frame = FRAME.drop("kind", "vector")
    frame.write_parquet(tmp_path / "frame.parquet")
    assert hash_frame(pl.read_parquet(tmp_path / "frame.parquet")) == hash_frame(frame)


def test_texts_that_are_joined_in_several_parts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pl.DataFrame({"text": [f"text {n}" for n in range(100)]})
    whole = hash_frame(texts)
    monkeypatch.setattr(fingerprint, "TEXTS_A_CHUNK", 7)
    assert hash_frame(texts) == whole
    assert len({hash_frame(texts.with_columns(pl.col("text").replace(f"text {n}", "!"))) for n in range(100)}) == 100


VALUES: dict[Any, list[Any]] = {
    pl.Int64(): [0, 1, None],
    pl.Int8(): [0, 1, None],
    pl.Float64(): [0.0, 1.0, None],
    pl.Boolean(): [False, True, None],
    pl.String(): ["", "a", "ab", None],
    pl.Binary(): [b"", b"a", None],
    pl.List(pl.Int64()): [[], [0], [0, 1], [None], None],
    pl.List(pl.String()): [[], [""], ["a", "b"], ["ab"], [None], None],
    pl.List(pl.List(pl.Int64())): [[], [[]], [[0], [1]], [[0, 1]], None],
    pl.Struct({"a": pl.Int64(), "b": pl.String()}): [{"a": 0, "b": ""}, {"a": None, "b": "a"}, None],
    pl.Enum(["a", "b"]): ["a", "b", None],
    pl.Enum(["b", "a"]): ["a", "b", None],
    pl.Decimal(9, 1): [Decimal("0"), Decimal("0.1"), None],
    pl.Decimal(9, 2): [Decimal("0"), Decimal("0.1"), None],
    pl.Date(): [None],
    pl.Null(): [None],
}


def test_frames_that_differ_in_anything_have_different_hashes() -> None:
    """Columns of at most two such values, alone and beside another, under two names."""
    columns = [
        pl.Series("x", rows, dtype=kind)
        for kind, values in VALUES.items()
        for height in range(3)
        for rows in itertools.product(values, repeat=height)
    ]
    short = [column for column in columns if column.len() == 1]
    frames = [pl.DataFrame([column]) for column in columns]
    for other in (pl.Series("y", [0]), pl.Series("y", [""]), pl.Series("y", [[]], dtype=pl.List(pl.Int64))):
        frames += [pl.DataFrame([one, other]) for one in short] + [pl.DataFrame([other, one]) for one in short]
    frames += [pl.DataFrame([one.alias(name)]) for one in short for name in ("y", "xy", 'x", ')]
    hashes = [hash_frame(frame) for frame in frames]
    assert len(set(hashes)) == len(frames) > 500


def test_names_of_columns_are_no_part_of_what_stands_in_them() -> None:
    one = pl.DataFrame({"a": ["b"], "c": ["d"]})
    assert len({hash_frame(one), hash_frame(one.rename({"a": "c", "c": "a"})), hash_frame(one.select("c", "a"))}) == 3


def test_order_of_rows_counts() -> None:
    assert len({hash_frame(FRAME[list(order)]) for order in itertools.permutations(range(4))}) == 24


def test_python_objects_in_a_frame_are_refused() -> None:
    with pytest.raises(TypeError, match="column 'x' holds Python objects"):
        hash_frame(pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}))


PROCESS = """
import json, sys
import polars as pl
from kaggle_llm.base.fingerprint import hash_frame
held = pl.Series(sys.argv[1:], dtype=pl.Categorical)  # a process deals out codes as texts come
kind = pl.DataFrame({"kind": pl.Series(["p", "q"], dtype=pl.Categorical)})
pair = pl.DataFrame({"pair": [{"a": "text", "b": ["x"]}, {"a": "other", "b": None}]})
print(json.dumps([hash_frame(kind), hash_frame(pair)]))
"""


def test_another_process_gives_the_same_hash() -> None:
    found = []
    for words in (("p", "q"), ("zz", "q", "p")):
        done = subprocess.run([sys.executable, "-c", PROCESS, *words], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


# values ---------------------------------------------------------------------------------------------------------


@dataclass
class Settings:
    rate: float
    more: dict[str, Any]


def test_values_are_told_by_their_content(tmp_path: Path) -> None:
    same = [
        (Settings(1.5, {"a": [1, 2], "b": None}), {"rate": 1.5, "more": {"b": None, "a": (1, 2)}}),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (FRAME["text"], FRAME.select("text")),
        ([FRAME, "x"], [pl.concat([FRAME[:2], FRAME[2:]]), "x"]),
        (write(tmp_path / "a", "text"), write(tmp_path / "folder" / "b", "text")),
    ]
    for one, other in same:
        assert records.hash_json(plain_value(one)) == records.hash_json(plain_value(other))
    distinct: list[Any] = [None, True, 1, 1.5, "1", "", [], {}, [1], [[1]], {"a": 1}, {"b": 1}, {"a": [1]}, FRAME]
    distinct += [FRAME[:3], FRAME["text"], Settings(1.5, {}), Settings(2.5, {}), Settings(1.5, {"x": {}})]
    distinct += [
        write(tmp_path / "c", "another text"),
        tmp_path / "folder",
        write(tmp_path / "two" / "c", "text").parent,
    ]
    assert len({records.hash_json(plain_value(value)) for value in distinct}) == len(distinct)


def test_a_folder_is_its_files_and_a_frame_in_settings_its_hash(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        write(tmp_path / folder / "x.txt", "x")
    assert plain_value(tmp_path / "one") == plain_value(tmp_path / "other") == records.hash_content(tmp_path / "one")
    assert plain_value(Settings(1.0, {"frame": FRAME})) == {"rate": 1.0, "more": {"frame": hash_frame(FRAME)}}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        plain_value(tmp_path / "none")


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), b"x", len, lambda: 1, Settings, iter([1]), [1, {"a": {3}}], Settings(1.0, {"a": len})]
)
def test_what_has_no_content_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no content hash: give paths, frames or plain values"):
        plain_value(value)


# code -----------------------------------------------------------------------------------------------------------

ENGINE, TRAINER = "kaggle_llm.engines.transformers_engine", "kaggle_llm.training.trainer"
EXPERIMENT = {
    "predict.py": "import json\n\nfrom helper import ask\n\n\ndef score():\n    import late\n    return late.x(ask)\n",
    "helper.py": "from typing import TYPE_CHECKING\n\nimport tools.words\n\nif TYPE_CHECKING:\n    import typed\n"
    "\n\ndef ask():\n    from kaggle_llm.engines.prompts import Prompter\n    return Prompter\n",
    "late.py": "from tools import numbers\n\nx = numbers.x\n",
    "tools/__init__.py": "y = 1\n",
    "tools/words.py": "from . import letters\n\nfrom shared import x\n",
    "tools/letters.py": "from .digits import x\n",
    "tools/digits.py": "x = 1\n",
    "tools/numbers.py": "x = 1\n",
    "tools/unused.py": "x = 1\n",
    "shared.py": "x = 1\n",
    "typed.py": "x = 1\n",
    "unused.py": "x = 1\n",
    "json.py": "x = 1\n",
}
USED = {"predict", "helper", "late", "shared", "json"}
USED |= {f"tools/{name}" for name in ("__init__", "words", "letters", "digits", "numbers")}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    for name, text in EXPERIMENT.items():
        write(tmp_path / "exp" / name, text)
    return tmp_path / "exp"


def test_an_edit_of_any_file_that_an_experiment_imports_counts_and_of_no_other(experiment: Path) -> None:
    predict = experiment / "predict.py"
    assert {name for name in list_code([predict]) if not name.startswith("kaggle_llm/")} == USED
    before = hash_code(predict)
    for name, text in EXPERIMENT.items():
        folder = experiment.parent / name.replace("/", "-")
        shutil.copytree(experiment, folder)
        write_later(folder / name, f"{text}\nEDITED = 1\n")
        assert (hash_code(folder / "predict.py") != before) == (name.removesuffix(".py") in USED), name
        write_later(folder / name, f'"""Says what it is."""\n{text}\n# a comment\n')
        assert hash_code(folder / "predict.py") == before, name


def test_where_an_experiment_lies_does_not_count(experiment: Path, tmp_path: Path) -> None:
    shutil.copytree(experiment, tmp_path / "copy")
    assert hash_code(experiment / "predict.py") == hash_code(tmp_path / "copy" / "predict.py")


def test_rooms_say_whose_modules_count(experiment: Path) -> None:
    predict = experiment / "predict.py"
    assert not any(name.startswith("kaggle_llm/") for name in list_code([predict], COMPUTING))
    assert "kaggle_llm/engines/prompts" in list_code([predict], FROM_TEXTS), "imported by a helper, inside a function"
    assert hash_code(predict) != hash_code(predict, rooms=FROM_TEXTS)
    assert "kaggle_llm/base/plain_text" in list_code([predict], FROM_TEXTS), "control words in a text are split there"
    assert "kaggle_llm/base/words" in list_code(["kaggle_llm.retrieval.lexical"], FROM_TEXTS), "words that are searched"


def test_code_is_followed_through_imports_inside_functions_but_not_into_what_only_moves_things() -> None:
    engine, trainer = list_code([ENGINE]), list_code([TRAINER])
    assert {f"kaggle_llm/engines/{name}" for name in ("transformers_engine", "scoring", "prefixes")} <= set(engine)
    assert {"kaggle_llm/training/trainer", "kaggle_llm/training/base_model", "kaggle_llm/training/optimizer"} <= set(
        trainer
    )
    for found in (engine, trainer):
        rooms = {name.split("/")[1] for name in found}
        assert rooms <= set(COMPUTING) and all(path.is_file() for path in found.values())
    moved = {f"kaggle_llm/base/{name}" for name in ("records", "paths", "processes")}
    moved |= {f"kaggle_llm/inference/{name}" for name in ("cache", "run", "cross_fit")}
    moved |= {"kaggle_llm/competition/metrics"}
    assert not moved & {*engine, *trainer, *list_code([TRAINER], FROM_TEXTS)}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that is hashed in its place."""
    copy = tmp_path / "src" / "kaggle_llm"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


def test_an_edit_of_a_module_that_computes_counts_wherever_it_is_imported_and_of_another_it_does_not(
    package: Path,
) -> None:
    modules = {
        "training/trainer.py": (True, False),
        "training/base_model.py": (True, False),
        "engines/tokenizer.py": (True, True),
        "engines/transformers_engine.py": (False, True),
        "engines/scoring.py": (False, True),
        "inference/answers.py": (False, False),
        "base/records.py": (False, False),
        "base/paths.py": (False, False),
        "competition/metrics.py": (False, False),
        "experiment/part.py": (False, False),
    }
    for module, expected in modules.items():
        before = hash_code(TRAINER), hash_code(ENGINE)
        write_later(package / module, f"{(package / module).read_text()}\n\nEDITED = 1\n")
        after = hash_code(TRAINER), hash_code(ENGINE)
        assert tuple(one != other for one, other in zip(before, after, strict=True)) == expected, module


def test_the_code_of_an_object_is_its_class_s_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ChoiceTask(ChoiceSettings(), [[1], [2]])
    assert hash_module_of(task) == hash_module_of(ChoiceTask) == hash_code("kaggle_llm.tasks.choice_training")
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "own_task_of_a_test.py", "import beside_a_task\n\n\ndef make(folder):\n    return beside_a_task\n")
    beside = write(tmp_path / "beside_a_task.py", "x = 1\n")
    import own_task_of_a_test

    before = hash_module_of(own_task_of_a_test.make)
    assert before == hash_code(tmp_path / "own_task_of_a_test.py")
    write_later(beside, "x = 2\n")
    assert hash_module_of(own_task_of_a_test.make) != before


def test_files_of_the_same_name_in_an_experiment_and_in_the_package_both_count(tmp_path: Path) -> None:
    predict = write(tmp_path / "predict.py", "import tokenizer\n\nfrom kaggle_llm.engines import tokenizer as other\n")
    write(tmp_path / "tokenizer.py", "x = 1\n")
    assert {"tokenizer", "kaggle_llm/engines/tokenizer"} <= set(list_code([predict]))
