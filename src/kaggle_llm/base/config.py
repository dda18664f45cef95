"""config.yaml + key=value overrides → an experiment's Config dataclass. Every error is reported at once.

The dataclasses are the schema: each module owns the settings of its section. OmegaConf reads, merges and
resolves; the types are checked here, because OmegaConf silently turns YAML's booleans into strings.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")

SMOKE = "smoke"  # the section of config.yaml whose values --smoke puts over the others


class ConfigError(ValueError):
    """Everything that is wrong with a config, one line each."""


def load_config(path: Path, schema: type[C], overrides: Sequence[str] = (), smoke: bool = False) -> C:
    """Read, merge and check.

    path: a YAML file; its `smoke:` section overrides the rest if `smoke`; overrides come last.
    overrides: "section.key=value", the value in YAML's notation.
    Raises ConfigError that lists every unknown key (with the nearest right name), wrong type and missing value.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"{path.name} holds a {type(loaded).__name__}, not a mapping of settings")
        smoke_section = loaded.pop(SMOKE, None) or {}
        last = OmegaConf.from_dotlist(list(overrides))
        full, small = (
            OmegaConf.to_container(OmegaConf.merge(loaded, section, last), resolve=True, throw_on_missing=True)
            for section in ({}, smoke_section)
        )
    except ConfigError:
        raise
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    errors: list[str] = []
    config = _build(schema, small if smoke else full, "", errors)
    if not errors:
        _build(schema, small, f"{SMOKE}: ", errors)  # checked in every run: an error there would be found too late
    if errors:
        raise ConfigError(f"{path.name}: {len(errors)} problem(s)\n  - " + "\n  - ".join(errors))
    return config


def build_config(values: Mapping[str, Any], schema: type[C]) -> C:
    """A resolved config as plain values → its dataclass; raises ConfigError as `load_config` does."""
    errors: list[str] = []
    config = _build(schema, dict(values), "", errors)
    if errors:
        raise ConfigError(f"config: {len(errors)} problem(s)\n  - " + "\n  - ".join(errors))
    return typing.cast(C, config)


def save_config(config: Any, path: Path) -> None:
    """The resolved config as YAML, readable again by `load_config`."""
    from omegaconf import OmegaConf

    from kaggle_llm.base import records

    records.write_text(path, OmegaConf.to_yaml(OmegaConf.create(_escape(dataclasses.asdict(config)))))


def _escape(value: Any) -> Any:
    """Resolved values whose ${…} are plain text, so that OmegaConf reads them as they are: it halves the backslashes
    before ${."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list | tuple) else value


def read_saved_config(path: Path) -> dict[str, Any]:
    """What `save_config` wrote, as plain values."""
    from omegaconf import OmegaConf

    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))


def _build(hint: Any, value: Any, name: str, errors: list[str]) -> Any:
    """`value` as the type `hint`; what does not fit is added to `errors` under its dotted name."""
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(typing.cast(type, hint), value, name, errors)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _build_optional(arguments, value, name, errors)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):  # True == 1
            errors.append(
                f"{name} = {value!r}: must be one of {', '.join(map(repr, arguments))}{_nearest(value, arguments)}"
            )
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            errors.append(f"{name} = {value!r}: must be a list")
            return value
        return origin(_build(arguments[0], item, f"{name}[{i}]", errors) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            errors.append(f"{name} = {value!r}: must be a mapping")
            return value
        return {key: _build(arguments[1], item, f"{name}.{key}", errors) for key, item in value.items()}
    return _build_scalar(hint, value, name, errors)


def _build_dataclass(schema: type, value: Any, name: str, errors: list[str]) -> Any:
    if not isinstance(value, dict):
        errors.append(f"{name or 'config'} = {value!r}: must be a section with keys")
        return None
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    prefix = name if not name or name.endswith(": ") else f"{name}."
    before = len(errors)
    for key in value:
        if key not in fields:
            errors.append(f"{prefix}{key}: unknown key{_nearest(key, fields)}")
    built = {}
    for key, field in fields.items():
        if key in value:
            built[key] = _build(hints[key], value[key], f"{prefix}{key}", errors)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            errors.append(f"{prefix}{key}: missing, it has no default")
    if len(errors) > before:
        return None
    try:
        return schema(**built)
    except ValueError as error:  # a cross-field check in __post_init__
        errors.append(f"{name or 'config'}: {error}")
        return None


def _build_optional(arguments: tuple[Any, ...], value: Any, name: str, errors: list[str]) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    *words, inner = [argument for argument in arguments if argument is not types.NoneType]
    if typing.get_origin(inner) is typing.Literal and words:  # int | Literal["auto"]: a word, or else a number
        (number,) = words
        return _build(inner if isinstance(value, str) else number, value, name, errors)
    return _build(inner, value, name, errors)


def _build_scalar(hint: type, value: Any, name: str, errors: list[str]) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:  # not isinstance: True is an int
        note = ""
        if hint is str and isinstance(value, bool):
            note = " (YAML reads Yes, No, On, Off and True without quotes as booleans: put it in quotes)"
        elif hint is float and isinstance(value, str):
            note = " (a number stands without quotes)"
        errors.append(f"{name} = {value!r}: must be {hint.__name__}, is {type(value).__name__}{note}")
    return value


def _nearest(value: Any, names: Any) -> str:
    matches = difflib.get_close_matches(str(value), [str(name) for name in names], n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f" (there are: {', '.join(map(str, names))})"
