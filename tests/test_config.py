"""Configs: every error is found, named and reported at once; overrides and the smoke section are laid over in order."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from kaggle_llm.base.config import ConfigError, load_config, read_saved_config, save_config
from kaggle_llm.experiment.base_config import BaseConfig


@dataclass
class Inner:
    rate: float = 0.1
    steps: int = 3
    labels: list[str] = field(default_factory=lambda: ["a"])

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}: must be 1 or more")


@dataclass
class Config:
    name: str
    inner: Inner = field(default_factory=Inner)
    limit: int | None = 7
    quick: bool = False
    mode: Literal["fast", "slow"] = "fast"
    budgets: dict[str, int] = field(default_factory=dict)
    pair: tuple[str, ...] = ()


def load(folder: Path, text: str, *overrides: str, smoke: bool = False) -> Config:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, Config, overrides, smoke)


def problems(folder: Path, text: str, *overrides: str, smoke: bool = False) -> list[str]:
    """The lines of the error that the config gives."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides, smoke=smoke)
    first, *lines = str(caught.value).splitlines()
    assert first == f"config.yaml: {len(lines)} problem(s)"
    return [line.removeprefix("  - ") for line in lines]


def test_every_kind_of_value_is_read_and_the_others_keep_their_defaults(tmp_path: Path) -> None:
    text = "name: x\ninner: {rate: 0.5, steps: 2, labels: [p, q]}\nlimit: 3\nquick: true\nmode: slow\n"
    read = load(tmp_path, text + "budgets: {a: 1, b: 2}\npair: [u, v]\n")
    assert read == Config("x", Inner(0.5, 2, ["p", "q"]), 3, True, "slow", {"a": 1, "b": 2}, ("u", "v"))
    assert load(tmp_path, "name: x\ninner: {steps: 5}") == Config("x", Inner(steps=5))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\nnmae: y", "nmae: unknown key; did you mean 'name'?"),
        ("name: x\ninner: {step: 2}", "inner.step: unknown key; did you mean 'steps'?"),
        ("name: x\ninner: {zzz: 2}", "inner.zzz: unknown key (there are: rate, steps, labels)"),
    ],
)
def test_unknown_keys_are_reported_with_the_nearest_name(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == [problem]


def test_several_errors_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "inner: {stepz: 1, rate: fast}\nquick: 1\nbudgets: {a: 1, b: many}")
    names = [line.split(" ")[0].strip(":") for line in found]
    assert names == ["name", "inner.stepz", "inner.rate", "quick", "budgets.b"]


def test_yes_and_no_without_quotes_are_refused_with_the_reason(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: x\ninner: {labels: [Yes, No]}")
    assert [line.split(":")[0] for line in found] == ["inner.labels[0] = True", "inner.labels[1] = False"]
    assert all("must be str, is bool" in line and "booleans" in line and "quotes" in line for line in found)
    assert load(tmp_path, 'name: x\ninner: {labels: ["Yes", "No"]}').inner.labels == ["Yes", "No"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("limit: '3'", "limit = '3': must be int, is str"),
        ("limit: true", "limit = True: must be int, is bool"),
        ("limit: 3.0", "limit = 3.0: must be int, is float"),
        ("quick: 1", "quick = 1: must be bool, is int"),
        ("inner: {rate: '1e-4'}", "inner.rate = '1e-4': must be float, is str"),
        ("inner: {rate: true}", "inner.rate = True: must be float, is bool"),
        ("inner: {labels: a}", "inner.labels = 'a': must be a list"),
        ("inner: {labels: [a, 2]}", "inner.labels[1] = 2: must be str, is int"),
        ("inner: 3", "inner = 3: must be a section with keys"),
        ("budgets: [1]", "budgets = [1]: must be a mapping"),
        ("budgets: {a: null}", "budgets.a = None: must be int, is NoneType"),
        ("pair: u", "pair = 'u': must be a list"),
        ("mode: slo", "mode = 'slo': must be one of 'fast', 'slow'; did you mean 'slow'?"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, text: str, start: str) -> None:
    (found,) = problems(tmp_path, f"name: x\n{text}")
    assert found.startswith(start)


@pytest.mark.parametrize(("value", "rate"), [("2", 2.0), ("1e-4", 1e-4), ("1.0e-4", 1e-4)])
def test_whole_numbers_and_exponents_are_floats_where_a_float_is_asked(tmp_path: Path, value: str, rate: float) -> None:
    read = load(tmp_path, f"name: x\ninner: {{rate: {value}}}").inner.rate
    assert read == rate and type(read) is float


def test_null_is_a_value_only_where_it_is_allowed(tmp_path: Path) -> None:
    assert load(tmp_path, "name: x\nlimit: null").limit is None
    assert problems(tmp_path, "name: null") == ["name = None: must be str, is NoneType"]


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "inner: {steps: 2}") == ["name: missing, it has no default"]


def test_overrides_replace_single_values_and_the_last_one_wins(tmp_path: Path) -> None:
    text = "name: x\ninner: {steps: 2, rate: 0.5}"
    read = load(tmp_path, text, "inner.steps=4", "inner.labels=[p, q]", "limit=null", "name=y", "name=z")
    assert read == Config("z", Inner(0.5, 4, ["p", "q"]), None)
    assert problems(tmp_path, text, "inner.stepz=4") == ["inner.stepz: unknown key; did you mean 'steps'?"]


def test_the_smoke_section_is_laid_over_only_with_smoke_and_below_the_overrides(tmp_path: Path) -> None:
    text = "name: x\ninner: {steps: 2, rate: 0.5}\nsmoke: {inner: {steps: 1}, limit: 1}"
    assert load(tmp_path, text) == Config("x", Inner(0.5, 2))
    assert load(tmp_path, text, smoke=True) == Config("x", Inner(0.5, 1), 1)
    assert load(tmp_path, text, "inner.steps=9", smoke=True) == Config("x", Inner(0.5, 9), 1)


@pytest.mark.parametrize(
    ("section", "problem"),
    [("{inner: {stps: 1}}", "inner.stps: unknown key"), ("{inner: {steps: 0}}", "inner: steps = 0")],
)
def test_a_wrong_smoke_section_is_found_without_smoke(tmp_path: Path, section: str, problem: str) -> None:
    (found,) = problems(tmp_path, f"name: x\nsmoke: {section}")
    assert found.startswith(f"smoke: {problem}")


def test_what_post_init_refuses_becomes_a_config_error_under_its_section(tmp_path: Path) -> None:
    found = problems(tmp_path, "name: x\ninner: {steps: 0}\nquick: 1")
    assert found == ["inner: steps = 0: must be 1 or more", "quick = 1: must be bool, is int"]


NO_SECTIONS = [b"3", b"name: x\nsmoke: 3", b"name: x\nsmoke: [1]", b"name: ???", b"name: x\nsmoke: {name: '${no}'}"]


def test_the_smoke_check_knows_the_overrides_and_an_empty_section(tmp_path: Path) -> None:
    assert load(tmp_path, "inner: {steps: 1}", "name=x") == load(tmp_path, "name: x\ninner: {steps: 1}\nsmoke:\n")


@pytest.mark.parametrize(
    "content", [b"name: [", b"name: x\nname: y", b"- x", b"name: ${nowhere}", b"name: \xff", *NO_SECTIONS]
)
def test_a_file_that_is_no_mapping_is_a_config_error_with_the_file_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^config\.yaml"):
        load_config(tmp_path / "config.yaml", Config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml", Config)


@pytest.mark.parametrize("text", ["Yes", "1e-4", "null", "0123", "a\nb ", "", "{question} # x", "Größe …"])
def test_a_saved_config_is_read_again_as_it_was(tmp_path: Path, text: str) -> None:
    config = Config(text, Inner(1e-7, 4, [text, " No"]), None, True, "slow", {"a": 1}, ("u", text))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", Config) == config


def test_a_saved_config_is_read_as_plain_values(tmp_path: Path) -> None:
    config = Config("x", Inner(1e-7, 4, ["a"]), None, True, "slow", {"a": 1}, ("u", "v"))
    save_config(config, tmp_path / "config.yaml")
    assert read_saved_config(tmp_path / "config.yaml") == {**asdict(config), "pair": ["u", "v"]}


# an experiment's own sections beside those that all have -----------------------------------------------------------


@dataclass(kw_only=True)
class Own(BaseConfig):
    inner: Inner
    depth: int = 8


def load_own(folder: Path, text: str, *overrides: str) -> Own:
    (folder / "config.yaml").write_text(f"competition: {{name: demo-tags}}\n{text}", encoding="utf-8")
    return load_config(folder / "config.yaml", Own, overrides)


def test_own_sections_may_be_required_beside_those_that_have_defaults(tmp_path: Path) -> None:
    read = load_own(tmp_path, "inner: {steps: 5}\nengine: {workers: 2}\nship: folds\n", "quantize.rows=9")
    assert (read.inner.steps, read.depth, read.seed) == (5, 8, 0)
    assert (read.engine.workers, read.quantize.rows, read.ship) == (2, 9, "folds")
    assert read.competition.name == "demo-tags" and read.models == {}
    with pytest.raises(ConfigError, match="inner: missing, it has no default"):
        load_own(tmp_path, "")
    with pytest.raises(ConfigError, match="dept: unknown key; did you mean 'depth'"):
        load_own(tmp_path, "inner: {}\ndept: 3\n")


def test_one_of_several_models_is_overridden(tmp_path: Path) -> None:
    text = "inner: {}\nmodels: {encoder: input/models/a, reranker: input/models/b}\n"
    read = load_own(tmp_path, text, "models.reranker=exp002_rerank--r32:reranker")
    assert read.models == {"encoder": "input/models/a", "reranker": "exp002_rerank--r32:reranker"}


ODD_PIECES = [
    "$",
    "{",
    "}",
    "${",
    "\\",
    "\\${seed}",
    "${name}",
    ":",
    " ",
    "\n",
    "\t",
    "\r",
    "'",
    '"',
    "#",
    "- ",
    "?",
    "é",
    "😀",
]
ODD_PIECES += [
    "\u2028",
    "\x85",
    "\ufeff",
    "\x07",
    "name",
    "oc.env:HOME",
    "%",
    "1",
    "e",
    "=",
    "<<",
    "~",
    "|",
    ">",
    "&a",
    "*a",
    "!",
]
ODD_TEXTS = [
    "",
    " ",
    "yes",
    "No",
    "null",
    "~",
    "1",
    "1.5",
    "1e3",
    "1_000",
    "0o7",
    "0x1f",
    "12:30",
    "2001-01-01",
    ".inf",
    "nan",
]
ODD_TEXTS += [
    "=",
    "<<",
    "\\",
    "\\\\",
    "\\${",
    "${",
    "${}",
    "a: b",
    "a #b",
    "[1]",
    "{a: 1}",
    "- a",
    "?",
    "---",
    "...",
    "%YAML",
]


def draw_text(rng: random.Random) -> str:
    return "".join(rng.choices(ODD_PIECES, k=rng.randint(1, 8)))


def test_a_config_survives_saving_and_loading_whatever_its_texts(tmp_path: Path) -> None:
    rng = random.Random(0)
    for text in [*ODD_TEXTS, *(draw_text(rng) for _ in range(100))]:
        config = Config(text, Inner(labels=[text, draw_text(rng)]), budgets={text: 1}, pair=(text,))
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml", Config) == config
        assert read_saved_config(tmp_path / "config.yaml") == {**asdict(config), "pair": [text]}


def test_an_escaped_reference_is_the_same_text_in_every_saved_copy(tmp_path: Path) -> None:
    first = load(tmp_path, r"name: 'Price in $: \${price}, \${limit}, ${limit}'" + "\nlimit: 3\n")
    assert first.name == "Price in $: ${price}, ${limit}, 3"
    for copy in ("run.yaml", "bundle.yaml"):
        save_config(first, tmp_path / copy)
        assert load_config(tmp_path / copy, Config) == first
        first = load_config(tmp_path / copy, Config)
