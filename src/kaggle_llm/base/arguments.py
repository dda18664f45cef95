"""The command line of a train.py, and the name of the run that follows from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kaggle_llm.base.config import ConfigError

USAGE = """usage: python {file} [key=value ...] [run=name] [--smoke] [--debug]

{idea}

  key=value   a setting of config.yaml, such as competition.dir=input/other
  run=name    the name of the run: output/{name}--name
  --smoke     the smallest run of everything, in output/{name}--smoke
  --debug     show the traceback of an error"""


@dataclass(frozen=True)
class Arguments:
    overrides: list[str]
    run: str
    smoke: bool


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Raises ConfigError for an argument that is neither key=value nor a known flag."""
    flags = {word for word in words if word.startswith("-")}
    unknown = sorted(flags - {"--smoke", "--debug"})
    pairs = [word for word in words if word not in flags]
    unknown += [word for word in pairs if "=" not in word or word.startswith("=")]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: arguments are key=value, run=name, --smoke and --debug")
    names = [pair.partition("=")[2] for pair in pairs if pair.startswith("run=")]
    name = names[-1] if names else ""
    if name.endswith("smoke"):
        raise ConfigError(f"run = {name!r}: only runs of --smoke have that ending, choose another name")
    if names and not re.fullmatch(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)*", name):
        raise ConfigError(f"run = {name!r}: letters, digits, dots, underscores and single hyphens make a name")
    overrides = [pair for pair in pairs if not pair.startswith("run=")]
    return Arguments(overrides, name, "--smoke" in flags)


def run_name(experiment: str, arguments: Arguments) -> str:
    """`<experiment>`, `<experiment>--<name>` with a name or overrides, `<experiment>--smoke` with --smoke."""
    name = arguments.run
    if arguments.overrides and not name:
        name = hashlib.sha256("\n".join(sorted(arguments.overrides)).encode()).hexdigest()[:8]
    variant = "-".join(part for part in (name, "smoke" if arguments.smoke else "") if part)
    return f"{experiment}--{variant}" if variant else experiment
