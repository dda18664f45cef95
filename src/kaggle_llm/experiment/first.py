"""`kaggle-llm init COMP`: a competition's module and a first experiment, written from a Proposal.

Leaves src/kaggle_llm/competition/<name>.py and exp/<experiment>/, a copy of the experiment that is nearest to the form,
with another config.yaml.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.folders import COMPETITIONS, copy_experiment
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import TEST, TRAIN
from kaggle_llm.competition.forms import LABELS
from kaggle_llm.competition.proposal import Answers, Proposal, propose
from kaggle_llm.experiment.python_code import LINE, Code, format_code, to_call, to_code

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPAN_FORMS = ("TokenSpans",)
FOLDS = 5
ENCODER_TOKENS, LLM_TOKENS, SMOKE_TOKENS = 400, 400, 48  # of a prompt's texts
CHARACTERS_A_TOKEN = 2  # at least, also of names and numbers
WHY = {
    "exp002_rerank": "the answers are documents, or labels in words: retrieve, then rerank",
    "exp003_summarize": "the answer is a text",
    "exp004_judge": "the labels choose between answers that stand in columns",
    "exp005_tags": "the answers are spans",
    "exp008_heads": "the answer is a label or a number",
}


def init_competition(name: str, answers: Answers, experiment: str) -> None:
    """Write the module and the experiment, and print what they are and why.

    On a terminal it asks what was assumed. Raises ValueError for a name that no module can have, FileNotFoundError
    without the files, FileExistsError where the module or the experiment exists.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(
            f"competition {name!r}: Kaggle's names have lower-case letters, digits and single hyphens; name its folder "
            f"in input/ so"
        )
    folder = paths.root() / "input" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{paths.relative(folder)} does not exist: run `kaggle-llm fetch {name}` first")
    proposal = propose(folder, name, answers)
    if sys.stdin.isatty():
        proposal = propose(folder, name, ask(proposal, answers))
    module, experiment, source = write_first(proposal, experiment)
    rows = [
        ["form", proposal.form, describe(proposal)],
        ["module", module, "; ".join(f"{key}: {text}" for key, text in proposal.assumed.items()) or "nothing assumed"],
        ["experiment", f"exp/{experiment}", f"a copy of {source}: {WHY[source]}"],
    ]
    print_table(f"{name}", ("", "written", "why"), rows)
    print(f"next: kaggle-llm check {name} && python exp/{experiment}/train.py --smoke")


def ask(proposal: Proposal, answers: Answers) -> Answers:
    """Ask at the terminal about what was assumed; an empty line keeps the assumption."""
    said = {field.name for field in fields(answers)}
    asked = {key: input(f"{key} ({text}): ").strip() for key, text in proposal.assumed.items() if key in said}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value}
    if "texts" in given:
        given["texts"] = tuple(given["texts"].split(","))
    return replace(answers, **given)


def write_first(proposal: Proposal, experiment: str) -> tuple[str, str, str]:
    """Write the module and the experiment; returns the module's path, the experiment's name and its source."""
    module = COMPETITIONS / f"{proposal.name.replace('-', '_')}.py"
    if module.exists():
        raise FileExistsError(f"{paths.relative(module)} exists: edit it, or move it away and run init again")
    source, name = choose_source(proposal), experiment or name_experiment(proposal)
    folder = copy_experiment(source, name)
    records.write_text(module, write_module(proposal))
    config = folder / "config.yaml"
    records.write_text(config, write_config(proposal, source, config.read_text(encoding="utf-8")))
    return paths.relative(module), name, source


def choose_source(proposal: Proposal) -> str:
    if proposal.answers:
        return "exp004_judge"
    by_form = {"Texts": "exp003_summarize", "TokenSpans": "exp005_tags"}
    return "exp002_rerank" if proposal.documents else by_form.get(proposal.form, "exp008_heads")


def name_experiment(proposal: Proposal) -> str:
    """exp<next number>_<first word of the competition's name>."""
    numbers = [
        int(match[1]) for path in (paths.root() / "exp").iterdir() if (match := re.match(r"exp(\d+)", path.name))
    ]
    return f"exp{max([*numbers, 8]) + 1:03d}_{re.split(r'[^a-z0-9]+', proposal.name)[0]}"


# the module ----------------------------------------------------------------------------------------------------


def write_module(proposal: Proposal) -> str:
    """The competition's module."""
    name = "".join(word.capitalize() for word in re.split(r"[^a-zA-Z0-9]+", proposal.name))
    class_name = name if name[0].isalpha() else f"Competition{name}"
    room = "span_forms" if proposal.form in SPAN_FORMS else "forms"
    constant = "LABELS" if proposal.form == "RankedLabels" else "TOKENS" if proposal.types else ""
    needs_polars = proposal.glued or proposal.empty_texts
    imports = [
        f"from kaggle_llm.competition.{room} import {', '.join(filter(None, [constant, proposal.form]))}",
        f"from kaggle_llm.competition.metrics import {proposal.metric.partition('(')[0]}",
        f"from kaggle_llm.competition.table import {'Table, Wide' if proposal.tables[TRAIN].wide else 'Table'}",
    ]
    lines = [
        f'"""{proposal.name}: proposed by `kaggle-llm init` from its files."""',
        "",
        "from __future__ import annotations",
        "",
        f"from typing import {'TYPE_CHECKING, ' if needs_polars else ''}ClassVar",
        "",
        *sorted(imports),
        *(["", "if TYPE_CHECKING:", "    import polars as pl"] if needs_polars else []),
        f"class {class_name}({proposal.form}):",
        f'    """{describe(proposal)}"""',
        "",
        *list_attributes(proposal),
        *write_read(proposal),
        f"COMPETITION = {class_name}",
    ]
    return format_code("\n".join(lines))


def describe(proposal: Proposal) -> str:
    """The class's docstring: what a row is asked."""
    second = (*proposal.labels, "", "")[1]
    kinds = {
        "LabelColumns": "a probability for each label",
        "NumberColumns": "a number for each column of the sample submission",
        "OneLabel": "one label",
        "OneProbability": f"the probability of {second!r}",
        "ProbabilityColumns": "the probability of each label, of which several may be right",
        "RankedItems": f"up to {proposal.cut} items, best first",
        "RankedLabels": f"up to {proposal.cut} labels, best first",
        "SeveralItems": f"up to {proposal.cut} items, best first, of which several may be right",
        "Texts": "a text",
        "TokenSpans": "labels of tokens",
    }
    return f"The answer is {kinds[proposal.form]}."


def list_attributes(proposal: Proposal) -> list[str]:
    """The class's attributes, each below a comment that says what was assumed."""
    train, assumed = proposal.tables[TRAIN], proposal.assumed
    values: dict[str, Any] = {
        "texts": train.texts,
        "wide": to_call(train.wide, {}) if train.wide else None,
        "tables": to_code({name: code_table(proposal, name) for name in proposal.tables}),
        "documents": proposal.documents if proposal.document_file else None,
        "labels": proposal.labels or None,
        "cut": proposal.cut or None,
        "metric": Code(proposal.metric),
    }
    notes = {
        "texts": ["form", "texts"],
        "tables": ["id", "target", "group"],
        "labels": ["labels"],
        "metric": ["metric"],
    }
    lines = []
    for name, value in values.items():
        for key in notes.get(name, ()):
            lines += write_comment(f"Assumed: {assumed[key]}.") if key in assumed else []
        typed = ": ClassVar" if name == "tables" or isinstance(value, dict) else ""
        lines += [] if value is None else [f"    {name}{typed} = {to_code(value)}"]
    return lines


def write_comment(text: str) -> list[str]:
    start = "    # "
    return textwrap.wrap(text, LINE, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def code_table(proposal: Proposal, name: str) -> Code:
    if proposal.tables[name] == LABELS:
        return Code("LABELS")
    shared = {"texts": Code("texts"), "wide": Code("wide"), "kept": Code("TOKENS")}
    return to_call(proposal.tables[name], shared if name in (TRAIN, TEST) else {})


def write_read(proposal: Proposal) -> list[str]:
    """read(), where the target is made of columns or where texts are empty."""
    if not (proposal.glued or proposal.empty_texts):
        return []
    lines = ["", "    def read(self, name: str) -> pl.DataFrame:", "        import polars as pl", ""]
    lines.append("        rows = super().read(name)")
    if proposal.glued:
        lines += [
            f'        if name == "{TRAIN}":',
            f'            parts = pl.col({", ".join(map(repr, proposal.glued))}).fill_null("NA")',
            f'            target = pl.concat_str(parts, separator=":").alias({":".join(proposal.glued)!r})',
            "            rows = rows.with_columns(target)",
        ]
    if proposal.empty_texts:
        lines += [
            "        texts = [name for name in self.texts if name in rows.columns]",
            '        rows = rows.with_columns(pl.col(texts).fill_null(""))  # Assumed: an empty text is a text.',
        ]
    return [*lines, "        return rows"]


# the config ----------------------------------------------------------------------------------------------------


def write_config(proposal: Proposal, source: str, text: str) -> str:
    """The source's config with the competition's columns in its prompts; folds and leaks by their defaults."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    config["competition"] = {"name": proposal.name}
    config.pop("leaks", None)
    config["smoke"].pop("prompt", None)  # with budgets of the source's columns
    config["folds"] = {"count": min(config["folds"]["count"], proposal.groups or FOLDS), "validate": [0]}
    CONFIGS[source](config, proposal)
    return dump_config(config)


def dump_config(config: dict[str, Any]) -> str:
    """YAML with lists and inner mappings on a line, and texts of several lines in quotes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)

    Dumper.add_representer(str, represent_text)
    return yaml.dump(config, Dumper=Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=10**6)


def set_rerank(config: dict[str, Any], proposal: Proposal) -> None:
    documents = proposal.tables[proposal.documents].texts
    words = " ".join(f"{{{name}}}" for name in documents)
    config["retrieval"] |= {"query": " ".join(f"{{{name}}}" for name in proposal.texts), "document": words}
    config["prompt"] |= {"shared": list_fields(proposal.texts), "candidate": f"Answer: {words}\nTrue?"}
    config["prompt"]["budgets"] = share_tokens(proposal, proposal.texts, LLM_TOKENS // 2)
    config["prompt"]["budgets"] |= dict.fromkeys(documents, 64 // max(len(documents), 1))


def set_writing(config: dict[str, Any], proposal: Proposal) -> None:
    config["prompt"] |= {"shared": f"{list_fields(proposal.texts)}\nAnswer:"}
    config["prompt"]["budgets"] = share_tokens(proposal, proposal.texts, LLM_TOKENS)
    config["writing"]["spare"] = "unknown"


def set_choice(config: dict[str, Any], proposal: Proposal) -> None:
    texts = [text for text in proposal.texts if text not in proposal.answers]
    letters = LETTERS[: max(len(proposal.labels), len(proposal.answers))]
    options, others = letters[: len(proposal.answers)], letters[len(proposal.answers) :]
    config["prompt"] |= {
        "shared": list_fields(texts),
        "ending": f"Best, {', '.join(letters[:-1])} or {letters[-1]}{' for none' if others else ''}:",
        "labels": [f" {letter}" for letter in options],
        "others": [f" {letter}" for letter in others],
        "budgets": share_tokens(proposal, texts, LLM_TOKENS // 2) | {"text": LLM_TOKENS // len(proposal.answers)},
    }
    config["orders"]["answers"] = list(proposal.answers)


def set_tags(config: dict[str, Any], proposal: Proposal) -> None:
    config["tagger"]["types"], config["rules"] = list(proposal.types), {}


def set_head(config: dict[str, Any], proposal: Proposal) -> None:
    levels = [label for label in proposal.labels if label.isdecimal()]
    is_ordered = proposal.form == "OneLabel" and len(levels) == len(proposal.labels) > 2
    by_form = {"NumberColumns": "regression", "ProbabilityColumns": "multilabel"}
    config["head"]["task"] = by_form.get(proposal.form, "ordinal" if is_ordered else "classification")
    config["prompt"].pop("default_budget", None)
    budgets, fewer = (share_tokens(proposal, proposal.texts, tokens) for tokens in (ENCODER_TOKENS, SMOKE_TOKENS))
    config["prompt"] |= {"shared": list_fields(proposal.texts), "budgets": budgets}
    config["smoke"]["prompt"] = {"budgets": fewer}


CONFIGS: dict[str, Callable[[dict[str, Any], Proposal], None]] = {
    "exp002_rerank": set_rerank,
    "exp003_summarize": set_writing,
    "exp004_judge": set_choice,
    "exp005_tags": set_tags,
    "exp008_heads": set_head,
}


def list_fields(texts: Sequence[str]) -> str:
    """A line for each text: its name, and its place in a prompt."""
    return "".join(f"{text.replace('_', ' ')}: {{{text}}}\n" for text in texts)


def share_tokens(proposal: Proposal, texts: Sequence[str], tokens: int) -> dict[str, int]:
    """Budgets that sum to `tokens` at most: what is short gets what it needs, the rest equal parts."""
    equal = max(tokens // max(len(texts), 1), 1)
    needs = {text: proposal.lengths[text] // CHARACTERS_A_TOKEN + 4 for text in texts}
    short = {text: need for text, need in needs.items() if need < equal}
    if len(short) == len(texts):
        return dict.fromkeys(texts, equal)
    rest = (tokens - sum(short.values())) // (len(texts) - len(short))
    return {text: short.get(text, max(rest, 1)) for text in texts}
